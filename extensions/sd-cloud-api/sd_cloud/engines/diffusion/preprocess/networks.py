"""The preprocessors that are networks: which function makes each one's map."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sd_cloud.engines.diffusion.preprocess import (
    animal_pose,
    anime_face,
    depth_anything,
    dsine,
    dwpose,
    face_analysis,
    face_mesh,
    face_parts,
    hed,
    lama,
    leres,
    leres_boost,
    lineart,
    midas,
    mlsd,
    mobile_sam,
    normal_bae,
    oneformer,
    pidinet,
    pose,
    teed,
    uniformer,
    zoe,
)
from sd_cloud.engines.diffusion.preprocess.detect import Detected, Detection, lineart_standard
from sd_cloud.engines.diffusion.preprocess.lines import Pixels
from sd_cloud.engines.diffusion.preprocess.loading import Bench

Network = Callable[[Bench, Pixels, Detection], Pixels | Detected]
Plain = Callable[[Bench, Pixels], Pixels | Detected]


def _plain(make: Plain) -> Network:
    """For those without sliders."""
    return lambda bench, image, detection: make(bench, image)


def _pose(*, body: bool = True, hand: bool = False, face: bool = False) -> Network:
    return lambda bench, image, detection: pose.pose(bench, image, body=body, hands=hand, faces=face)


def _anyline(bench: Bench, image: Pixels, detection: Detection) -> Pixels:
    return teed.anyline(bench, image, lineart_standard(image), int(detection.a))


NETWORKS: Mapping[str, Network] = {
    "hed": _plain(hed.soft_edges),
    "hed_safe": _plain(hed.safe_edges),
    "scribble_hed": _plain(hed.soft_edges),
    "pidinet": _plain(pidinet.soft_edges),
    "pidinet_safe": _plain(pidinet.safe_edges),
    "pidinet_scribble": _plain(pidinet.soft_edges),
    "pidinet_sketch": _plain(pidinet.sketch),
    "softedge_teed": lambda bench, image, how: teed.edges(bench, image, int(how.a)),
    "softedge_anyline": _anyline,
    "lineart": _plain(lineart.drawing),
    "lineart_coarse": _plain(lineart.drawing),
    "lineart_anime": _plain(lineart.anime_drawing),
    "lineart_anime_denoise": _plain(lineart.manga_lines),
    "mlsd": lambda bench, image, how: mlsd.straight_lines(bench, image, how.a, how.b),
    "depth": _plain(midas.depth),
    "normal_map": lambda bench, image, how: midas.normals(bench, image, how.a),
    "depth_leres": lambda bench, image, how: leres.depth(bench, image, how.a, how.b),
    "depth_leres++": lambda bench, image, how: leres_boost.depth(bench, image, how.a, how.b),
    "depth_zoe": _plain(zoe.depth),
    "normal_bae": _plain(normal_bae.normals),
    "depth_anything": lambda bench, image, how: depth_anything.depth(bench, image, second=False),
    "depth_anything_v2": lambda bench, image, how: depth_anything.depth(bench, image, second=True),
    "animal_openpose": _plain(animal_pose.pose),
    "dw_openpose_full": _plain(dwpose.pose),
    "instant_id_face_keypoints": _plain(face_analysis.keypoints),
    "mediapipe_face": lambda bench, image, how: face_mesh.faces(bench, image, int(how.a), how.b),
    "segmentation": _plain(uniformer.segments),
    "anime_face_segment": _plain(anime_face.parts),
    "oneformer_ade20k": lambda bench, image, how: oneformer.segments(bench, image, oneformer.ADE20K),
    "oneformer_coco": lambda bench, image, how: oneformer.segments(bench, image, oneformer.COCO),
    "openpose": _pose(),
    "openpose_face": _pose(face=True),
    "openpose_faceonly": _pose(body=False, face=True),
    "openpose_full": _pose(hand=True, face=True),
    "openpose_hand": _pose(hand=True),
}
"""Each takes RGB pixels whose sides are multiples of 64 px, and gives a map of their size, with what else
`Detected` has room for."""

AS_SENT: Mapping[str, Network] = {
    "inpaint_only+lama": _plain(lama.filled),
    "facexlib": _plain(face_parts.features),
    "mobile_sam": lambda bench, image, how: mobile_sam.segments(bench, image, how.resolution, how.seed),
    "normal_dsine": lambda bench, image, how: dsine.normals(bench, image, how.resolution, how.a, int(how.b)),
}
"""Each takes the image as it is sent, and gives a map whose size is its own affair."""
