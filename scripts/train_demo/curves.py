"""A loss curve as a PNG, drawn with Pillow."""

from __future__ import annotations

import json
import math
from pathlib import Path

from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, BELOW = 640, 320, 56, 28


def draw_curves(log: Path, target: Path) -> None:
    """Loss over steps, logarithmic; a resumed run's repeated steps overwrite the earlier ones."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    points = sorted({line["step"]: line["loss"] for line in lines}.items())
    low, high = min(loss for _, loss in points), max(loss for _, loss in points)
    span = math.log(high / low) or 1.0
    first, last = points[0][0], points[-1][0]

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - 10) * (step - first) / max(1, last - first)
        return x, 10 + (HEIGHT - BELOW - 10) * (1 - math.log(loss / low) / span)

    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    for part in range(5):
        loss, step = low * math.exp(span * part / 4), first + (last - first) * part / 4
        y, x = place(first, loss)[1], place(step, low)[0]
        draw.line([(LEFT, y), (WIDTH - 10, y)], fill="#dddddd")
        draw.text((4, y - 6), f"{loss:.4f}", fill="black")
        draw.text((x - 14, HEIGHT - BELOW + 8), f"{step:.0f}", fill="black")
    draw.line([place(step, loss) for step, loss in points], fill="#c03020", width=2)
    target.parent.mkdir(parents=True, exist_ok=True)
    image.save(target, optimize=True)
