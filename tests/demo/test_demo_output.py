"""What `install.py demo` shows a newcomer."""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts" / "launch"))

import demo


def test_an_answer_is_shown_with_long_strings_cut_and_paths_whole() -> None:
    paths = ",".join(["/somewhere/outputs/txt2img-images/2026-11-26/a-picture.png"] * 5)
    answer = {
        "parameters": {"image_url": paths, "image_links": ["http://here/" + "k" * 500]},
        "info": "i" * 900,
    }
    shown = demo.shortened(answer)
    assert shown["parameters"]["image_url"] == paths
    assert len(shown["parameters"]["image_links"][0]) < 200
    assert len(shown["info"]) < 200


def test_pictures_are_put_side_by_side_in_the_order_asked_for(tmp_path: Path) -> None:
    colours = ("red", "orange", "blue")
    for colour in colours:
        Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
    target = demo.side_by_side([tmp_path / f"{colour}.png" for colour in colours], tmp_path / "row.png")
    with Image.open(target) as row:
        assert row.size == (3 * 32 + 2 * demo.GAP, 32)
        left, right = row.getpixel((0, 0)), row.getpixel((row.width - 1, 0))
    assert (left, right) == ((255, 0, 0), (0, 0, 255))
