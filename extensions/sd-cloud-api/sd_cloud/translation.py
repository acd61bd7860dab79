"""Chinese prompts into English, by a local model where one is installed.

Any folder below ``models/translation/`` that transformers can open as a sequence-to-sequence model
for zh→en (Marian's ``opus-mt-zh-en``, for one). It runs in a process of its own, because this one
never loads torch; the process ends after a while without work.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from sd_cloud.errors import EngineFailed

log = logging.getLogger(__name__)

IDLE_SECONDS = 300.0
LIMIT_TOKENS = 160
_CHINESE = re.compile(r"[\u3400-\u9fff\uf900-\ufaff]")


class Translator:
    """Translates with the first model found below ``folder``; without one prompts stay as they are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: ProcessPoolExecutor | None = None
        self._turn = asyncio.Lock()
        self._rest: asyncio.TimerHandle | None = None

    async def until_stopped(self) -> None:
        """The model's process ends with the service."""
        try:
            await asyncio.Event().wait()
        finally:
            self.close()

    async def english(self, texts: Sequence[str]) -> list[str]:
        """The texts, those with Chinese in them translated. Raises EngineFailed."""
        chinese = [text for text in texts if _CHINESE.search(text)]
        if not chinese:
            return list(texts)
        model = await asyncio.to_thread(installed, self._folder)
        if model is None:
            return list(texts)
        async with self._turn:
            translated = dict(zip(chinese, await self._translated(model, chinese), strict=True))
        return [translated.get(text, text) for text in texts]

    async def _translated(self, model: Path, texts: list[str]) -> list[str]:
        if self._rest is not None:
            self._rest.cancel()
        if self._process is None:
            self._process = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._process, translate, str(model), texts)
        except BrokenProcessPool as error:
            self.close()
            raise EngineFailed("the translation process ended; see the log") from error
        except Exception as error:
            log.exception("translating with %s failed", model)
            raise EngineFailed(f"the prompt could not be translated by {model.name}: {error}") from error
        finally:
            self._rest = loop.call_later(IDLE_SECONDS, self.close)

    def close(self) -> None:
        if self._process is not None:
            self._process.shutdown(wait=False)
            self._process = None


def installed(folder: Path) -> Path | None:
    """The first folder below it, by name, that has a model."""
    if not folder.is_dir():
        return None
    return next((one for one in sorted(folder.iterdir()) if (one / "config.json").is_file()), None)


_loaded: dict[str, tuple[object, object]] = {}


def translate(folder: str, texts: list[str]) -> list[str]:
    """Runs in the process for it."""
    import torch
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    if folder not in _loaded:
        _loaded.clear()
        _loaded[folder] = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True),
            AutoModelForSeq2SeqLM.from_pretrained(folder, local_files_only=True).eval(),
        )
    tokenizer, model = _loaded[folder]
    tokens = tokenizer(texts, return_tensors="pt", padding=True, truncation=True)  # type: ignore[operator]
    with torch.inference_mode():
        made = model.generate(**tokens, max_new_tokens=LIMIT_TOKENS, num_beams=4)  # type: ignore[attr-defined]
    return list(tokenizer.batch_decode(made, skip_special_tokens=True))  # type: ignore[attr-defined]
