"""The embedded engine makes the pictures that the real webui made: PSNR of 60 dB, the same infotext."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sd_cloud.engines.base import Control, Worker
from tests.golden.golden import GOLDEN, Case, cases, compared, install_models, without_version

pytest.importorskip("torch")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden pictures are not beside this checkout"),
]

SAME_PICTURE_DECIBELS = 60.0


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    from sd_cloud.engines.diffusion.engine import create

    yield create(install_models(tmp_path_factory.mktemp("data")))


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_same_request_makes_the_same_picture_and_infotext_as_the_webui(
    worker: Worker, case: Case
) -> None:
    outcome = worker.run(case.job, lambda progress: None, Control())

    made = [picture.image for picture in outcome.pictures if picture.image is not None]
    assert min(compared(case.images, made)) >= SAME_PICTURE_DECIBELS
    assert [without_version(picture.infotext) for picture in outcome.pictures] == [
        without_version(text) for text in case.infotexts
    ]
    assert tuple(picture.seed for picture in outcome.pictures) == case.seeds


def test_all_golden_cases_are_run() -> None:
    assert len(cases()) == 36
