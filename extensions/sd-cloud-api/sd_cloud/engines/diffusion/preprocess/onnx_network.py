"""Networks published in ONNX, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sd_cloud.errors import CheckpointBroken

Numbers = NDArray[Any]
Run = Callable[[Numbers], list[Numbers]]
"""What a network makes of its one input, by the order of its outputs."""

KEPT_NETWORKS = 4


def session(path: Path) -> Run:
    """Raises CheckpointBroken for what is no ONNX file, and when run on what the network does not take."""
    return _session(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=KEPT_NETWORKS)
def _session(path: Path, mtime_ns: int) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    try:
        found = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, without a common one of its own
        raise CheckpointBroken(f"{path.name} is not an ONNX network: {str(error)[:200]}") from error
    name = found.get_inputs()[0].name

    def run(values: Numbers) -> list[Numbers]:
        try:
            return list(found.run(None, {name: values}))
        except Exception as error:  # as above
            shape = "x".join(map(str, values.shape))
            raise CheckpointBroken(
                f"{path.name} is another network than its name says: it does not run on {shape}: "
                f"{str(error)[:200]}"
            ) from error

    return run


def apart(boxes: Numbers, scores: Numbers, overlap: float, *, edge_px: int = 1) -> list[int]:
    """The surest boxes (left, top, right, bottom px) that share no more than ``overlap`` of what they
    and a surer one cover. ``edge_px``: by how much a box is larger than from its left to its right."""
    areas = (boxes[:, 2] - boxes[:, 0] + edge_px) * (boxes[:, 3] - boxes[:, 1] + edge_px)
    order, kept = scores.argsort()[::-1], []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[rest, :2])
        high = np.minimum(boxes[best, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(0.0, high - low + edge_px), axis=1)
        order = rest[shared / (areas[best] + areas[rest] - shared) <= overlap]
    return kept
