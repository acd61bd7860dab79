"""TAESD in a VAE's place: ``sd_vae_encode_method``, ``sd_vae_decode_method``, previews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from sd_cloud.engines.base import Control
from sd_cloud.errors import BadRequest, CheckpointBroken
from sd_cloud.job import Progress
from tests.engines.diffusion.test_engine import img2img, job, made, picture
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout"),
]


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from scripts.fidelity.models import write_tiny_vaes

    from sd_cloud.engines.diffusion.engine import create

    data_dir = tmp_path_factory.mktemp("data")
    settings = install_models(data_dir)
    write_tiny_vaes(settings.folders.tiny_vaes[0])
    yield create(settings)


def test_a_job_decodes_by_taesd_and_says_so(worker: Any) -> None:
    outcome = made(worker, job(override_settings={"sd_vae_decode_method": "TAESD"}))
    assert decibels(picture(outcome), picture(made(worker, job()))) < 30
    assert "VAE Decoder: TAESD" in outcome.pictures[0].infotext


def test_a_job_encodes_by_taesd_and_says_so(worker: Any) -> None:
    own = {"sd_vae_encode_method": "TAESD"}
    outcome = made(worker, img2img(override_settings=own))
    assert decibels(picture(outcome), picture(made(worker, img2img()))) < 50
    assert "VAE Encoder: TAESD" in outcome.pictures[0].infotext
    assert "VAE Decoder" not in outcome.pictures[0].infotext


def test_encoding_by_taesd_draws_no_noise(worker: Any) -> None:
    from sd_cloud.engines.diffusion.latents import Coder
    from sd_cloud.engines.diffusion.taesd import Tiny, TinyEncoder

    coder = Coder(None, 1.0, tiny=Tiny(encoder=TinyEncoder(4)))
    assert coder.encode(torch.zeros(2, 3, 64, 72), source=None).shape == (2, 4, 8, 9)


def test_a_second_pass_tells_how_the_first_was_encoded_as_the_webui_does(worker: Any) -> None:
    asked = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos", "denoising_strength": 0.0}
    both = {"sd_vae_encode_method": "TAESD", "sd_vae_decode_method": "TAESD"}
    text = made(worker, job(**asked, override_settings=both)).pictures[0].infotext
    assert "VAE Encoder: TAESD" in text
    assert "VAE Decoder" not in text


def test_a_preview_by_taesd_has_the_pictures_size_and_comes_every_so_many_steps(worker: Any) -> None:
    seen: list[Progress] = []
    options = {"show_progress_type": "TAESD", "show_progress_every_n_steps": 2}
    worker.run(job(steps=5, batch_size=2, override_settings=options), seen.append, Control())
    sizes = [one.preview.size for one in seen if one.preview is not None]
    assert sizes == [(128, 64)] * 2


def test_a_full_preview_is_the_picture_so_far(worker: Any) -> None:
    seen: list[Progress] = []
    options = {"show_progress_type": "Full", "show_progress_every_n_steps": 1}
    outcome = worker.run(job(override_settings=options, sampler_name="Euler"), seen.append, Control())
    last = [one.preview for one in seen if one.preview is not None][-1]
    assert decibels(last, picture(outcome)) > 40


def test_a_method_of_another_name_is_refused_with_those_there_are(worker: Any) -> None:
    with pytest.raises(BadRequest, match=r"sd_vae_decode_method.*Full, TAESD"):
        made(worker, job(override_settings={"sd_vae_decode_method": "Tiny"}))


def test_another_file_under_its_name_is_refused(worker: Any, tmp_path: Path) -> None:
    from sd_cloud.engines.diffusion.model import Placement
    from sd_cloud.engines.diffusion.taesd import build

    with pytest.raises(CheckpointBroken, match=r"other\.pth: its TAESD decoder lacks"):
        build("decoder", {"1.weight": torch.zeros(64, 4, 3, 3)}, 4, "other.pth", Placement())


def test_pictures_side_by_side_are_one_picture() -> None:
    from sd_cloud.engines.diffusion.previews import side_by_side

    row = side_by_side([Image.new("RGB", (2, 3), "red"), Image.new("RGB", (2, 3), "blue")])
    assert row.size == (4, 3)
    assert row.getpixel((3, 2)) == (0, 0, 255)
