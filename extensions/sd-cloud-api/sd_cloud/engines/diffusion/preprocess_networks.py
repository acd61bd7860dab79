"""The preprocessors that are networks: which function makes each one's map."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sd_cloud.engines.diffusion import (
    preprocess_depth_anything,
    preprocess_dwpose,
    preprocess_hed,
    preprocess_leres,
    preprocess_lineart,
    preprocess_midas,
    preprocess_mlsd,
    preprocess_normal_bae,
    preprocess_pidinet,
    preprocess_pose,
    preprocess_teed,
)
from sd_cloud.engines.diffusion.preprocess import Detection, lineart_standard
from sd_cloud.engines.diffusion.preprocess_lines import Pixels
from sd_cloud.engines.diffusion.preprocess_loading import Bench

Network = Callable[[Bench, Pixels, Detection], Pixels]
Plain = Callable[[Bench, Pixels], Pixels]


def _plain(make: Plain) -> Network:
    """For those without sliders."""
    return lambda bench, image, detection: make(bench, image)


def _pose(*, body: bool = True, hand: bool = False, face: bool = False) -> Network:
    return lambda bench, image, detection: preprocess_pose.pose(
        bench, image, body=body, hands=hand, faces=face
    )


def _anyline(bench: Bench, image: Pixels, detection: Detection) -> Pixels:
    return preprocess_teed.anyline(bench, image, lineart_standard(image), int(detection.a))


NETWORKS: Mapping[str, Network] = {
    "hed": _plain(preprocess_hed.soft_edges),
    "hed_safe": _plain(preprocess_hed.safe_edges),
    "scribble_hed": _plain(preprocess_hed.soft_edges),
    "pidinet": _plain(preprocess_pidinet.soft_edges),
    "pidinet_safe": _plain(preprocess_pidinet.safe_edges),
    "pidinet_scribble": _plain(preprocess_pidinet.soft_edges),
    "pidinet_sketch": _plain(preprocess_pidinet.sketch),
    "softedge_teed": lambda bench, image, how: preprocess_teed.edges(bench, image, int(how.a)),
    "softedge_anyline": _anyline,
    "lineart": _plain(preprocess_lineart.drawing),
    "lineart_coarse": _plain(preprocess_lineart.drawing),
    "lineart_anime": _plain(preprocess_lineart.anime_drawing),
    "lineart_anime_denoise": _plain(preprocess_lineart.manga_lines),
    "mlsd": lambda bench, image, how: preprocess_mlsd.straight_lines(bench, image, how.a, how.b),
    "depth": _plain(preprocess_midas.depth),
    "normal_map": lambda bench, image, how: preprocess_midas.normals(bench, image, how.a),
    "depth_leres": lambda bench, image, how: preprocess_leres.depth(bench, image, how.a, how.b),
    "normal_bae": _plain(preprocess_normal_bae.normals),
    "depth_anything": lambda bench, image, how: preprocess_depth_anything.depth(bench, image, second=False),
    "depth_anything_v2": lambda bench, image, how: preprocess_depth_anything.depth(bench, image, second=True),
    "dw_openpose_full": _plain(preprocess_dwpose.pose),
    "openpose": _pose(),
    "openpose_face": _pose(face=True),
    "openpose_faceonly": _pose(body=False, face=True),
    "openpose_full": _pose(hand=True, face=True),
    "openpose_hand": _pose(hand=True),
}
"""Each takes RGB pixels whose sides are multiples of 64 px, and gives a map of their size."""
