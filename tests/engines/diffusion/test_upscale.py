"""Upscalers: the plain ones are Pillow's, the networks load from every layout, tiles change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sd_cloud.engines.diffusion import upscale_models
from sd_cloud.engines.diffusion.upscale import through, upscale
from sd_cloud.engines.diffusion.upscale_models import RRDBNet, SRVGGNetCompact, load_upscaler
from sd_cloud.engines.diffusion.upscale_tiles import TileSize, Tilings, join, split, starts
from sd_cloud.errors import BadRequest, CheckpointBroken, NotImplementedHere
from sd_cloud.settings import Settings, settings_below

Weights = dict[str, torch.Tensor]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    found = settings_below(tmp_path / "data")
    found.folders.esrgan[0].mkdir(parents=True)
    return found


def picture(width: int, height: int) -> Image.Image:
    seeded = np.random.default_rng(7)
    small = Image.fromarray(seeded.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def random_rrdb(**changes: int) -> RRDBNet:
    torch.manual_seed(3)
    return RRDBNet(**{"features": 8, "growth": 4, "blocks": 2, "doublings": 2, **changes})


def as_2018_sequential(weights: Weights, doublings: int) -> Weights:
    """The layout of the first ESRGAN files: numbered modules."""
    numbers = {"conv_first": 0, **{f"conv_up{n}": 3 * n for n in range(1, doublings + 1)}}
    high = 3 * doublings + 2
    numbers |= {"conv_hr": high, "conv_last": high + 2}
    blocks = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("body."))
    renamed = {}
    for key, value in weights.items():
        parts = key.split(".")
        if parts[0] == "body":
            name = f"model.1.sub.{parts[1]}.{parts[2].upper()}.{parts[3]}.0.{parts[4]}"
        elif parts[0] == "conv_body":
            name = f"model.1.sub.{blocks}.{parts[1]}"
        else:
            name = f"model.{numbers[parts[0]]}.{parts[1]}"
        renamed[name] = value
    return renamed


def as_2018_named(weights: Weights) -> Weights:
    """The layout of BSRGAN and the later ESRGAN files."""
    heads = {"conv_body": "trunk_conv", "conv_hr": "HRconv", "body": "RRDB_trunk"}
    heads |= {"conv_up1": "upconv1", "conv_up2": "upconv2"}
    renamed = {}
    for key, value in weights.items():
        head, rest = key.split(".", 1)
        renamed[f"{heads.get(head, head)}.{rest.replace('rdb', 'RDB')}"] = value
    return renamed


@pytest.mark.parametrize(("name", "resample"), [("Lanczos", Image.LANCZOS), ("nearest", Image.NEAREST)])
def test_plain_upscalers_are_pillows(settings: Settings, name: str, resample: Image.Resampling) -> None:
    image = picture(32, 24)
    assert upscale(image, name, 2, settings=settings).tobytes() == image.resize((64, 48), resample).tobytes()


def test_sides_are_brought_to_multiples_of_eight(settings: Settings) -> None:
    assert upscale(picture(30, 21), "Lanczos", 1.5, settings=settings).size == (40, 24)
    assert upscale(picture(30, 21), "None", 2, settings=settings).size == (56, 40)


def test_an_unknown_upscaler_is_an_error_that_lists_those_there(settings: Settings) -> None:
    with pytest.raises(BadRequest, match=r"hr_upscaler: no upscaler is named '4x'.*None, Lanczos, Nearest"):
        upscale(picture(8, 8), "4x", 2, settings=settings, field="hr_upscaler")


def test_the_three_layouts_of_one_rrdbnet_make_the_same_picture(settings: Settings) -> None:
    net = random_rrdb()
    weights = net.state_dict()
    folder = settings.folders.esrgan[0]
    torch.save({"params_ema": weights}, folder / "today.pth")
    torch.save(as_2018_sequential(weights, 2), folder / "first.pth")
    torch.save(as_2018_named(weights), folder / "named.pth")
    image = picture(20, 12)
    made = [upscale(image, name, 4, settings=settings) for name in ("today", "first", "named")]
    assert made[0].size == (80, 48)
    assert made[0].tobytes() == made[1].tobytes() == made[2].tobytes()
    assert made[0].tobytes() != image.resize((80, 48), Image.LANCZOS).tobytes()


def test_rrdbnet_computes_what_the_paper_says() -> None:
    net = random_rrdb(blocks=1, doublings=0)
    pixels = torch.rand(1, 3, 5, 6)
    first = net.conv_first(pixels)

    def dense(block: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        maps = [x]
        for place in (1, 2, 3, 4):
            out = block.get_submodule(f"conv{place}")(torch.cat(maps, 1))
            maps.append(torch.where(out > 0, out, 0.2 * out))
        return x + 0.2 * block.get_submodule("conv5")(torch.cat(maps, 1))

    trunk = net.body[0]
    inner = dense(trunk.rdb3, dense(trunk.rdb2, dense(trunk.rdb1, first)))
    features = first + net.conv_body(first + 0.2 * inner)
    high = net.conv_hr(features)
    expected = net.conv_last(torch.where(high > 0, high, 0.2 * high))
    torch.testing.assert_close(net(pixels), expected)


@pytest.mark.parametrize(("unshuffle", "scale"), [(2, 2), (4, 1)])
def test_unshuffled_networks_take_sides_that_do_not_divide(
    settings: Settings, unshuffle: int, scale: int
) -> None:
    net = random_rrdb(unshuffle=unshuffle)
    torch.save({"params": net.state_dict()}, settings.folders.esrgan[0] / "net.pth")
    loaded = load_upscaler(settings.folders.esrgan[0] / "net.pth")
    assert through(loaded, picture(18, 13), "cpu").size == (18 * scale, 13 * scale)
    whole = through(loaded, picture(16, 12), "cpu")
    assert whole.size == (16 * scale, 12 * scale)


def test_the_compact_network_adds_to_the_nearest_picture(settings: Settings) -> None:
    torch.manual_seed(5)
    net = SRVGGNetCompact(features=6, convolutions=3, scale=4)
    torch.save({"params": net.state_dict()}, settings.folders.esrgan[0] / "compact.pth")
    image = picture(16, 16)
    made = upscale(image, "compact", 4, settings=settings)
    nearest = image.resize((64, 64), Image.NEAREST)
    assert made.size == (64, 64) and made.tobytes() != nearest.tobytes()
    with torch.no_grad():
        net.body[-1].weight.zero_()
        net.body[-1].bias.zero_()
    assert through(net, image, "cpu").tobytes() == nearest.tobytes()


def test_a_network_is_applied_again_until_the_size_is_reached(settings: Settings) -> None:
    net = random_rrdb(unshuffle=2)  # scale 2
    torch.save(net.state_dict(), settings.folders.esrgan[0] / "twice.pth")
    loaded = load_upscaler(settings.folders.esrgan[0] / "twice.pth")
    image = picture(8, 8)
    whole = Tilings({"ESRGAN": TileSize(side_px=0)})
    expected = through(loaded, through(loaded, image, "cpu"), "cpu")
    assert upscale(image, "twice", 4, settings=settings, tilings=whole).tobytes() == expected.tobytes()


def test_tiles_make_nearly_the_picture_of_the_whole(settings: Settings) -> None:
    torch.manual_seed(1)
    net = SRVGGNetCompact(features=4, convolutions=1, scale=2)
    torch.save(net.state_dict(), settings.folders.esrgan[0] / "local.pth")
    image = picture(96, 80)
    whole = upscale(image, "local", 2, settings=settings, tilings=Tilings({"ESRGAN": TileSize(side_px=0)}))
    tiled = upscale(
        image, "local", 2, settings=settings, tilings=Tilings({"ESRGAN": TileSize(side_px=40, overlap_px=8)})
    )
    difference = np.abs(np.asarray(whole, np.int16) - np.asarray(tiled, np.int16))
    assert difference.mean() < 1.0


@pytest.mark.parametrize("size", [(100, 70), (64, 64), (65, 64), (40, 30), (200, 64)])
@pytest.mark.parametrize("overlap", [0, 8, 16])
def test_splitting_and_joining_gives_the_image_back(size: tuple[int, int], overlap: int) -> None:
    image = picture(*size)
    joined = join(split(image, 64, 64, overlap), size, overlap)
    difference = np.abs(np.asarray(image, np.int16) - np.asarray(joined, np.int16))
    assert difference.max() <= 1  # fading a tile into an equal one rounds


def test_tiles_cover_a_side_and_overlap() -> None:
    assert starts(100, 64, 8) == [0, 36]
    assert starts(64, 64, 8) == [0]
    assert starts(40, 64, 8) == [-24]


def test_stopping_leaves_a_picture_of_the_right_size(settings: Settings) -> None:
    torch.save(random_rrdb().state_dict(), settings.folders.esrgan[0] / "net.pth")
    image = picture(16, 16)
    made = upscale(image, "net", 4, settings=settings, stop=lambda: True)
    assert made.tobytes() == image.resize((64, 64), Image.LANCZOS).tobytes()


def test_a_file_that_is_no_upscaler_is_named(settings: Settings) -> None:
    folder = settings.folders.esrgan[0]
    (folder / "junk.pth").write_bytes(b"junk")
    broken = random_rrdb().state_dict()
    del broken["conv_hr.weight"]
    torch.save(broken, folder / "short.pth")
    for name, fact in (("junk", "junk.pth"), ("short", "short.pth.*conv_hr")):
        with pytest.raises(CheckpointBroken, match=f"(?s){fact}"):
            upscale(picture(8, 8), name, 2, settings=settings)


def test_another_architecture_without_spandrel_is_an_error_that_says_so(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spandrel", None)
    torch.save({"layers.0.attn.qkv.weight": torch.zeros(3, 3)}, settings.folders.esrgan[0] / "swin.pth")
    with pytest.raises(NotImplementedHere, match=r"swin\.pth is not of the ESRGAN family.*spandrel"):
        upscale(picture(8, 8), "swin", 2, settings=settings)


def test_another_architecture_goes_through_spandrel_where_it_imports(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the package, with the two calls that are made of it."""
    import types

    class Loader:
        def __init__(self, device: str) -> None:
            self.device = device

        def load_from_file(self, path: str) -> torch.nn.Module:
            assert path.endswith("other.pth")
            return torch.nn.Upsample(scale_factor=2, mode="nearest")

    monkeypatch.setitem(__import__("sys").modules, "spandrel", types.SimpleNamespace(ModelLoader=Loader))
    torch.save({"unknown": torch.zeros(1)}, settings.folders.esrgan[0] / "other.pth")
    image = picture(8, 8)
    made = upscale(image, "other", 2, settings=settings)
    assert made.tobytes() == image.resize((16, 16), Image.NEAREST).tobytes()


class OtherKinds:
    """A stand-in for spandrel: a picture twice as large, of each tile's mean; remembers the tiles' sides."""

    def __init__(self) -> None:
        self.sides: list[tuple[int, int]] = []

    def ModelLoader(self, device: str) -> OtherKinds:
        return self

    def load_from_file(self, path: str) -> OtherKinds:
        return self

    def eval(self) -> OtherKinds:
        return self

    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2:]
        self.sides.append((width, height))
        return pixels.mean(dim=(2, 3), keepdim=True).expand(-1, -1, height * 2, width * 2)


@pytest.mark.parametrize(
    ("folder", "option", "sides"),
    [
        ("DAT", "DAT_tile", [(16, 16)] * 2),
        ("HAT", "ESRGAN_tile", [(16, 16)] * 2),
        ("SwinIR", "SWIN_tile", [(16, 16)] * 2),
        ("ScuNET", "SCUNET_tile", [(16, 16)] * 2),
        ("SwinIR", "ESRGAN_tile", [(24, 24)]),  # not its own; a tile is no larger than the picture
    ],
)
def test_upscalers_of_other_kinds_have_folders_and_tiles_of_their_own(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    option: str,
    sides: list[tuple[int, int]],
) -> None:
    upscale_models._loaded.cache_clear()
    spandrel = OtherKinds()
    monkeypatch.setitem(__import__("sys").modules, "spandrel", spandrel)
    place = settings.data_dir / "models" / folder
    place.mkdir(parents=True)
    torch.save({"unknown": torch.zeros(1)}, place / "other.pth")
    options = {option: 16, f"{option}_overlap": 8}
    tilings = Tilings.of_options(lambda name, default: options.get(name, default))
    high = 24 if option == "ESRGAN_tile" and folder == "SwinIR" else 16
    upscale(picture(24, high), "other", 2, settings=settings, tilings=tilings)
    assert spandrel.sides == sides


def test_where_summed_tiles_overlap_their_mean_counts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    upscale_models._loaded.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "spandrel", OtherKinds())
    place = settings.data_dir / "models" / "SwinIR"
    place.mkdir(parents=True)
    torch.save({"unknown": torch.zeros(1)}, place / "other.pth")
    image = Image.new("RGB", (24, 16), (0, 0, 0))
    image.paste((200, 100, 40), (16, 0, 24, 16))
    tilings = Tilings.of_options(lambda name, default: 16 if name == "SWIN_tile" else default)
    made = upscale(image, "other", 2, settings=settings, tilings=tilings)
    assert made.size == (48, 32)
    assert [made.getpixel((x, 20)) for x in (0, 24, 47)] == [(0, 0, 0), (50, 25, 10), (100, 50, 20)]


def test_two_networks_stay_loaded_and_a_changed_file_is_read_again(settings: Settings) -> None:
    upscale_models._loaded.cache_clear()
    path = settings.folders.esrgan[0] / "net.pth"
    torch.save(random_rrdb().state_dict(), path)
    first = load_upscaler(path)
    assert load_upscaler(path) is first
    import os

    os.utime(path, ns=(1, 1))
    assert load_upscaler(path) is not first
