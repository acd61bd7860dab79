"""A task, and the Jobs page's list, followed by the browser's own EventSource."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.dialects.serving import Served, served

FOLLOW = """
async () => {
  const size = { width: 64, height: 64, steps: 1000, n_iter: 4 };
  const body = { stable_diffusion_model: "first", prompt: "a cat face", ...size };
  const headers = { "Content-Type": "application/json", "Request-Type": "async" };
  const asked = await fetch("/txt2img", { method: "POST", headers, body: JSON.stringify(body) });
  const { taskId } = await asked.json();
  const told = [];
  await new Promise((resolve, reject) => {
    const events = new EventSource(`/sd-cloud/v1/tasks/${taskId}/events`);
    events.addEventListener("progress", (one) => {
      told.push({ type: "progress", ...JSON.parse(one.data) });
      // It goes on until it was followed.
      if (told.at(-1).state === "running") fetch("/sdapi/v1/interrupt", { method: "POST" });
    });
    events.addEventListener("end", (one) => told.push({ type: "end", ...JSON.parse(one.data) }));
    // The stream's end is an error to an EventSource: it comes back, and is told that there is no more.
    events.addEventListener("error", () => events.readyState === EventSource.CLOSED && resolve());
    setTimeout(() => reject(new Error(`still open after ${told.length} events`)), 60000);
  });
  return told;
}
"""


@pytest.fixture
def painting(tmp_path: Path) -> Iterator[Served]:
    """A service whose engine takes its time: what is tested is not what it paints."""
    with served(tmp_path, nowebui=True) as one:
        one.engine.step_seconds = 0.025
        yield one


def test_an_event_source_is_told_of_progress_and_the_end_once_and_closes_itself(
    page: Page, painting: Served
) -> None:
    page.goto(f"{painting.url}/sd-cloud/pages/jobs.html")
    told = page.evaluate(FOLLOW)
    assert [one["type"] for one in told].count("end") == 1 and told[-1]["type"] == "end"
    assert told[-1]["state"] == "succeeded"
    assert [one["role"] for one in told[-1]["pictures"]].count("image") == 4
    assert any(one["state"] == "running" and one["steps"] == 1000 for one in told)


def asked(painting: Served, prompt: str) -> str:
    body = {"stable_diffusion_model": "first", "prompt": prompt, "width": 64, "height": 64, "steps": 10}
    headers = {"Request-Type": "async"}
    answer = httpx.post(f"{painting.url}/txt2img", json=body, headers=headers, timeout=60, trust_env=False)
    return str(answer.json()["taskId"])


def test_the_jobs_page_follows_its_list_and_where_that_is_refused_looks_again_and_says_why(
    page: Page, painting: Served
) -> None:
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url.rpartition("/v1/")[2].split("?")[0]))
    page.goto(f"{painting.url}/sd-cloud/pages/jobs.html")
    first = asked(painting, "a boat that is followed")
    expect(page.locator(f"[data-task='{first}'] .state")).to_have_text("done")
    assert sent.count("tasks/events") == 1 and "tasks" not in sent
    expect(page.locator("#refused")).to_be_empty()

    page.route(
        "**/v1/tasks/events?**",
        lambda route: route.fulfill(status=403, json={"detail": "no streams through here"}),
    )
    page.reload()
    expect(page.locator("#refused")).to_contain_text("403 no streams through here")
    second = asked(painting, "a boat that is looked up")
    expect(page.locator(f"[data-task='{second}'] .state")).to_have_text("done")
    assert "tasks" in sent
