from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from sd_cloud.engines.diffusion.noise import (  # noqa: E402
    BatchNoise,
    BrownianNoise,
    PhiloxSource,
    RandomKind,
    SeedSize,
    Variation,
    blend_on_sphere,
)
from sd_cloud.errors import BadRequest  # noqa: E402

SHAPE = (4, 6, 5)
CPU = RandomKind("GPU", torch.device("cpu"))


def test_philox_gives_what_a_cuda_device_gives() -> None:
    # torch.randn(3, 4, device="cuda") after torch.manual_seed(0)
    wanted = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    torch.testing.assert_close(PhiloxSource(0).randn((3, 4)), torch.tensor(wanted))


def test_a_picture_in_a_batch_gets_the_noise_it_gets_alone() -> None:
    batch = BatchNoise(SHAPE, [5, 6], CPU)
    alone = BatchNoise(SHAPE, [6], CPU)
    for _ in range(3):
        assert torch.equal(batch.draw()[1], alone.draw()[0])


def test_the_seed_delta_changes_what_is_drawn_while_sampling_and_not_the_start() -> None:
    plain, shifted = BatchNoise(SHAPE, [5], CPU), BatchNoise(SHAPE, [5], CPU, seed_delta=31337)
    assert torch.equal(plain.draw(), shifted.draw())
    assert not torch.equal(plain.draw(), shifted.draw())


def test_a_seed_has_64_bits_and_one_beyond_them_is_refused() -> None:
    last = 2**64 - 1
    assert BatchNoise(SHAPE, [last], CPU).draw().isfinite().all()
    with pytest.raises(BadRequest, match=f"^seed: {last + 1} is more than"):
        BatchNoise(SHAPE, [last, last + 1], CPU).draw()
    with pytest.raises(BadRequest, match=f"^seed: {last + 5} is more than"):
        BatchNoise(SHAPE, [last], CPU, seed_delta=5).draw()


def test_no_variation_is_the_seed_and_full_variation_the_subseed() -> None:
    def start(strength: float) -> object:
        return BatchNoise(SHAPE, [5], CPU, variation=Variation([9], strength)).draw()

    own, other = BatchNoise(SHAPE, [5], CPU).draw(), BatchNoise(SHAPE, [9], CPU).draw()
    torch.testing.assert_close(start(0.0), own)
    torch.testing.assert_close(start(1.0), other, rtol=1e-4, atol=1e-5)


def test_blending_on_the_sphere_keeps_the_length() -> None:
    low, high = (torch.nn.functional.normalize(torch.randn(3, 8, 2), dim=1) for _ in range(2))
    blended = blend_on_sphere(0.3, low, high)
    torch.testing.assert_close(blended.norm(dim=1), torch.ones(3, 2), rtol=1e-3, atol=1e-3)


def test_the_noise_of_a_smaller_picture_is_kept_in_the_middle() -> None:
    small = BatchNoise((4, 4, 4), [5], CPU).draw()
    large = BatchNoise((4, 8, 8), [5], CPU, seed_size=SeedSize(32, 32)).draw()
    assert torch.equal(large[:, :, 2:6, 2:6], small)


def test_the_noise_of_a_larger_picture_is_cut_to_its_middle() -> None:
    large = BatchNoise((4, 8, 8), [5], CPU).draw()
    small = BatchNoise((4, 4, 4), [5], CPU, seed_size=SeedSize(64, 64)).draw()
    assert torch.equal(small, large[:, :, 2:6, 2:6])


@pytest.mark.parametrize("kind", ["GPU", "NV"])
def test_brownian_noise_depends_on_the_levels_and_not_on_the_way_between(kind: str) -> None:
    sigmas = torch.tensor([10.0, 5.0, 1.0, 0.0])
    random = RandomKind(kind, torch.device("cpu"))
    first, second = (BrownianNoise(torch.zeros(1, 2, 2, 2), sigmas, [3], random) for _ in range(2))
    first(torch.tensor(10.0), torch.tensor(5.0))
    there, again = (one(torch.tensor(5.0), torch.tensor(1.0)) for one in (first, second))
    torch.testing.assert_close(there, again)


def test_an_unknown_source_of_randomness_is_refused_by_name() -> None:
    with pytest.raises(BadRequest, match="randn_source"):
        RandomKind("TPU", torch.device("cpu"))
