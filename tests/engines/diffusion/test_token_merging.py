"""Token merging: what is alike shares one place in self-attention, and only there."""

from __future__ import annotations

from typing import Any

import pytest

from sd_cloud.engines.base import Control
from sd_cloud.engines.diffusion.options import Options
from sd_cloud.job import Job
from tests.golden.golden import GOLDEN, decibels, install_models

torch = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.token_merging import plan  # noqa: E402


def test_the_places_most_like_a_target_go_into_it_and_come_back_as_it() -> None:
    x = torch.randn(1, 16, 8, generator=torch.Generator().manual_seed(1))
    x[0, 1] = x[0, 0]  # place 1 is just like place 0, a top left one
    merge = plan(x, 4, 4, 1)
    assert merge is not None
    smaller = merge.merged(x)
    assert smaller.shape == (1, 15, 8)
    torch.testing.assert_close(merge.spread(smaller), x)


def test_what_went_has_the_value_of_what_it_went_into() -> None:
    x = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(2))
    merge = plan(x, 4, 4, 12)
    assert merge is not None
    spread = merge.spread(merge.merged(x))
    assert len({tuple(row.tolist()) for row in spread[0]}) == 4  # only the top left ones are left


def test_sides_that_are_not_even_leave_their_last_places_to_merge() -> None:
    x = torch.randn(1, 15, 8, generator=torch.Generator().manual_seed(3))
    merge = plan(x, 3, 5, 20)
    assert merge is not None
    assert merge.merged(x).shape == (1, 2, 8)


@pytest.mark.parametrize(
    ("own", "host", "source", "second", "ratio"),
    [
        ({}, {}, False, False, 0.0),
        ({}, {"token_merging_ratio": 0.3}, False, True, 0.3),
        ({"token_merging_ratio_hr": 0.5}, {"token_merging_ratio": 0.3}, False, True, 0.5),
        ({"token_merging_ratio_hr": 0.5}, {}, False, False, 0.0),
        ({}, {"token_merging_ratio": 0.3, "token_merging_ratio_img2img": 0.4}, True, False, 0.4),
        ({"token_merging_ratio": 0.2}, {"token_merging_ratio_img2img": 0.4}, True, False, 0.2),
    ],
)
def test_which_ratio_holds_follows_the_webui(
    own: dict[str, float], host: dict[str, float], source: bool, second: bool, ratio: float
) -> None:
    options = Options(Job("txt2img", {"override_settings": own}, options=host))
    assert options.merging_ratio(source=source, second=second) == ratio


@pytest.mark.engine
@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the tiny checkpoints are not beside this checkout")
def test_a_job_merges_and_the_next_one_does_not(tmp_path_factory: pytest.TempPathFactory) -> None:
    from sd_cloud.engines.diffusion.engine import create

    worker: Any = create(install_models(tmp_path_factory.mktemp("data")))

    def made(**options: Any) -> Any:
        payload = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 7}
        job = Job("txt2img", {**payload, "override_settings": options}, checkpoint="tiny-a")
        return worker.run(job, lambda progress: None, Control()).pictures[0]

    before, merged, after = made(), made(token_merging_ratio=0.5), made()
    assert decibels(before.image, merged.image) < 50
    assert decibels(before.image, after.image) > 60
    assert "Token merging ratio: 0.5" in merged.infotext
