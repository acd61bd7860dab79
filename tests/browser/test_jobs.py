"""The Jobs page: what waits, what runs, what came of it, in a tab of the page."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, expect

from tests.browser.webui import WebUI, is_drawn
from tests.e2e.world import World

SMALL = {
    "stable_diffusion_model": "emoji",
    "width": 64,
    "height": 64,
    "steps": 20,
    "cfg_scale": 3,
    "seed": 3,
}
#: Steps of 64 pixels that take longer than any test of it.
ENDLESS = {**SMALL, "steps": 150, "n_iter": 100}


def asked(world: World, body: dict[str, object]) -> str:
    """A task over HTTP that nobody waits for; its id."""
    answer = world.post("/txt2img", body, headers={"Request-Type": "async"})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["taskId"])


def test_a_job_waits_runs_and_shows_its_picture_and_another_is_cancelled(webui: WebUI, world: World) -> None:
    first = asked(world, {**ENDLESS, "prompt": "an endless row of cats"})
    second = asked(world, {**SMALL, "prompt": "a rocket"})
    third = asked(world, {**SMALL, "prompt": "a blue car"})
    jobs = webui.frame("Jobs")

    def row(task_id: str) -> Locator:
        return jobs.locator(f"[data-task='{task_id}']")

    def state(task_id: str) -> Locator:
        return row(task_id).locator(".state")

    expect(state(first)).to_have_text("running")
    expect(row(first).locator("progress")).to_be_visible()
    expect(row(first).get_by_alt_text("preview")).to_be_visible()
    expect(state(second)).to_have_text("waiting")
    expect(jobs.locator("#waiting")).to_have_text("2 waiting")

    row(third).get_by_role("button", name="Cancel").click()
    expect(state(third)).to_have_text("cancelled")
    row(first).get_by_role("button", name="Cancel").click()
    expect(state(first)).to_have_text("cancelled")
    expect(state(second)).to_have_text("done")
    expect(row(second)).to_contain_text("a rocket")
    picture = row(second).locator(".pictures img")
    assert is_drawn(webui.fetched(picture))
    with webui.page.expect_popup() as opened:
        picture.click()
    expect(opened.value).to_have_url(re.compile(r"/sd-cloud/v1/files/.*\.png"))


def test_a_job_of_the_page_is_there_too_and_one_that_failed_says_why(webui: WebUI, world: World) -> None:
    webui.write("a green tree")
    webui.generate()
    broken = world.data_dir / "models" / "Stable-diffusion" / "broken.safetensors"
    broken.write_bytes(b"no tensors at all")
    failed = asked(world, {**SMALL, "prompt": "x", "stable_diffusion_model": "broken"})
    jobs = webui.frame("Jobs")
    mine = jobs.locator("article").filter(has_text="a green tree").first
    expect(mine.locator(".state")).to_have_text("done")
    row = jobs.locator(f"[data-task='{failed}']")
    expect(row.locator(".state")).to_have_text("failed")
    expect(row).to_contain_text("broken.safetensors")
    broken.unlink()
