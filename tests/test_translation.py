from __future__ import annotations

from pathlib import Path

import httpx
import pytest

pytest.importorskip("transformers", reason="translation needs transformers, which is not on this stack")
pytest.importorskip("sentencepiece", reason="Marian's tokenizer needs sentencepiece")

from sd_cloud.dialects.dashscope import SUBMIT
from sd_cloud.translation import Translator
from tests import tiny_translator
from tests.dialects.sdapi_world import native

# Marian's tokenizer recommends sacremoses, which only changes unusual punctuation.
pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")]


async def test_a_chinese_prompt_to_dashscope_reaches_the_engine_in_english(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "translation"
    tiny_translator.write(folder / "tiny-zh-en")
    parameters = {"n": 1, "steps": 1, "size": "512*512"}
    async with native(tmp_path) as world:

        async def ask(prompt: str, negative: str) -> httpx.Response:
            words = {"prompt": prompt, "negative_prompt": negative}
            body = {"model": "stable-diffusion-3.5-large", "input": words, "parameters": parameters}
            return await world.client.post(SUBMIT, json=body, headers={"X-DashScope-Async": "enable"})

        for given, english in (
            (("一只红猫", "模糊"), ("a red cat", "blurry")),
            (("蓝天上的鹰", "garfield"), ("an eagle in the blue sky", "garfield")),
            (("a dog, 4k", ""), ("a dog, 4k", "")),
        ):
            submitted = await ask(*given)
            await world.service.result(submitted.json()["output"]["task_id"])
            assert (world.job.payload["prompt"], world.job.payload["negative_prompt"]) == english
        # A folder that is no translation model is named, and the process serves the next one.
        (folder / "another").mkdir()
        (folder / "another" / "config.json").write_text("{}")
        refused = await ask("一只红猫", "")
        assert refused.status_code == 500 and refused.json()["code"] == "InternalError"
        assert "could not be translated by another" in refused.json()["message"]


async def test_without_a_model_a_chinese_prompt_passes_as_it_is(tmp_path: Path) -> None:
    assert await Translator(tmp_path / "nothing").english(("一只红猫",)) == ["一只红猫"]
    (tmp_path / "models" / "translation" / "no model in it").mkdir(parents=True)
    assert await Translator(tmp_path / "models" / "translation").english(("一只红猫",)) == ["一只红猫"]
