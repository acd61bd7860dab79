"""The preprocessors of sd-webui-controlnet: names, sliders, and which of them are here.

Names, labels, ranges and defaults are those of Mikubill/sd-webui-controlnet (API version 3), so
that ``/controlnet/module_list`` and a unit's defaults are the same. Never imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sd_cloud.engines.diffusion.preprocess.module import HIDDEN, Module, Slider

_GAMMA = Slider("Gamma Correction", 0.1, 2.0, 0.001, 1.0)
_FIDELITY = Slider("Style Fidelity (only for Balanced mode)", 0.0, 1.0, 0.01, 0.5)
_NOISE = Slider("Noise Augmentation", 0.0, 1.0, 0.01, 0.0)
_VARIATION = Slider("Variation", 3.0, 32.0, 1.0, 8.0)
_NEAR = Slider("Remove Near %", 0, 100, 0.1, 0)
_BACKGROUND = Slider("Remove Background %", 0, 100, 0.1, 0)
_SAFE_STEPS = Slider("Safe Steps", 0, 10, 1, 2)

_BODY, _HAND = "openpose/body_pose_model.pth", "openpose/hand_pose_model.pth"
_FACE_POINTS = "openpose/facenet.pth"
_YOLOX = "openpose/yolox_l.onnx"
_ANIMAL = "openpose/rtmpose-m_simcc-ap10k_pt-aic-coco_210e-256x256-7a041aa1_20230206.onnx"
_OPENPOSE = f"{_BODY}, {_HAND}, {_FACE_POINTS}"
_LERES = "leres/res101.pth, leres/latest_net_G.pth"
_HED = "hed/ControlNetHED.pth"
_PIDINET = "pidinet/table5_pidinet.pth"
INSTANT_ID_FILES = tuple(
    f"insightface/models/antelopev2/{name}" for name in ("scrfd_10g_bnkps.onnx", "glintr100.onnx")
)
FACE_ID_FILES = tuple(f"insightface/models/buffalo_l/{name}" for name in ("det_10g.onnx", "w600k_r50.onnx"))
"""A network that finds faces, and one that tells people apart."""
FACE_PARTS_FILES = tuple(
    f"facexlib/{name}" for name in ("detection_Resnet50_Final.pth", "parsing_bisenet.pth")
)

CLIP_L, CLIP_H, CLIP_G = (f"clip_vision/{name}.pth" for name in ("clip_vitl", "clip_h", "clip_g"))
CLIP_EVA = "clip_vision/EVA02_CLIP_L_336_psz14_s6B.pt"
PULID = "ip-adapter_pulid"
PULID_FILES = (*INSTANT_ID_FILES, *FACE_PARTS_FILES, CLIP_EVA)

_ALL = (
    Module("none", "", ("InstructP2P",), priority=10),
    Module(
        "canny",
        "",
        ("Canny",),
        slider_1=Slider("Low Threshold", 1, 255, 1, 100),
        slider_2=Slider("High Threshold", 1, 255, 1, 200),
        priority=100,
    ),
    Module(
        "invert",
        "invert (from white bg & black line)",
        ("Canny", "Lineart", "Scribble", "MLSD"),
        HIDDEN,
        priority=20,
    ),
    Module("blur_gaussian", "", ("Tile",), slider_1=Slider("Sigma", 0.01, 64.0, 0.01, 9.0)),
    Module(
        "scribble_xdog", "", ("Scribble", "SparseCtrl"), slider_1=Slider("XDoG Threshold", 1, 64, 0.01, 32)
    ),
    Module("shuffle", "", ("Shuffle",), Slider("EMPTY_LABEL", value=512, visible=False)),
    Module("inpaint", "inpaint_global_harmonious", ("Inpaint",), HIDDEN),
    Module("inpaint_only", "", ("Inpaint",), HIDDEN, priority=100),
    Module("inpaint_only+lama", "", ("Inpaint",), HIDDEN, weights="lama/ControlNetLama.pth"),
    Module("lineart_standard", "lineart_standard (from white bg & black line)", ("Lineart",), priority=100),
    Module("recolor_intensity", "", ("Recolor",), slider_1=_GAMMA),
    Module("recolor_luminance", "", ("Recolor",), slider_1=_GAMMA, priority=100),
    Module("color", "t2ia_color_grid", ("T2I-Adapter",)),
    Module("threshold", "", (), slider_1=Slider("Binarization Threshold", 0, 255, 0.01, 127)),
    Module("tile_colorfix", "", ("Tile",), slider_1=_VARIATION),
    Module(
        "tile_colorfix+sharp",
        "",
        ("Tile",),
        slider_1=_VARIATION,
        slider_2=Slider("Sharpness", 0.0, 2.0, 0.01, 1.0),
    ),
    Module(
        "tile_resample",
        "",
        ("Tile",),
        slider_1=Slider("Down Sampling Rate", 1.0, 8.0, 0.01, 1.0),
        priority=100,
    ),
    Module("animal_openpose", "", ("OpenPose",), weights=f"{_YOLOX}, {_ANIMAL}"),
    Module(
        "densepose",
        "densepose (pruple bg & purple torso)",
        ("OpenPose",),
        weights="densepose/densepose_r50_fpn_dl.torchscript",
    ),
    Module(
        "densepose_parula",
        "densepose_parula (black bg & blue torso)",
        ("OpenPose",),
        weights="densepose/densepose_r50_fpn_dl.torchscript",
    ),
    Module("depth_anything", "", ("Depth",), weights="depth_anything/depth_anything_vitl14.pth"),
    Module(
        "depth_anything_v2", "", ("Depth",), weights="depth_anything_v2/depth_anything_v2_vitl.safetensors"
    ),
    Module(
        "depth_hand_refiner",
        "",
        ("Depth",),
        weights="hand_refiner/graphormer_hand_state_dict.bin, "
        "hand_refiner/hrnetv2_w64_imagenet_pretrained.pth, "
        "MediaPipe's hand_landmarker.task and the MANO hand model",
    ),
    Module("depth_leres", "", ("Depth",), slider_1=_NEAR, slider_2=_BACKGROUND, weights="leres/res101.pth"),
    Module("depth_leres++", "", ("Depth",), slider_1=_NEAR, slider_2=_BACKGROUND, weights=_LERES),
    Module("depth", "depth_midas", ("Depth",), priority=100, weights="midas/dpt_hybrid-midas-501f0c75.pt"),
    Module("depth_zoe", "", ("Depth",), weights="zoedepth/ZoeD_M12_N.pt"),
    Module(
        "dw_openpose_full", "", ("OpenPose",), weights="openpose/yolox_l.onnx, openpose/dw-ll_ucoco_384.onnx"
    ),
    Module("facexlib", "", (), HIDDEN, weights=", ".join(FACE_PARTS_FILES)),
    Module("instant_id_face_embedding", "", ("Instant-ID",), weights=", ".join(INSTANT_ID_FILES)),
    Module("instant_id_face_keypoints", "", ("Instant-ID",), weights=INSTANT_ID_FILES[0]),
    Module("ip-adapter-auto", "", ("IP-Adapter",), priority=1000, weights="clip_vision/clip_h.pth"),
    Module(
        "ip-adapter_clip_sd15",
        "ip-adapter_clip_h",
        ("IP-Adapter",),
        priority=100,
        weights="clip_vision/clip_h.pth",
    ),
    Module("ip-adapter_clip_sdxl", "ip-adapter_clip_g", ("IP-Adapter",), weights="clip_vision/clip_g.pth"),
    Module("ip-adapter_clip_sdxl_plus_vith", "", ("IP-Adapter",), weights="clip_vision/clip_h.pth"),
    Module("ip-adapter_face_id", "", ("IP-Adapter",), weights=", ".join(FACE_ID_FILES)),
    Module(
        "ip-adapter_face_id_plus",
        "",
        ("IP-Adapter",),
        weights=", ".join((*FACE_ID_FILES, "clip_vision/clip_h.pth")),
    ),
    Module(PULID, "", ("IP-Adapter",), HIDDEN, weights=", ".join(PULID_FILES)),
    Module("lineart_anime", "", ("Lineart",), weights="lineart_anime/netG.pth"),
    Module("lineart_anime_denoise", "", ("Lineart",), weights="manga_line/erika.pth"),
    Module("lineart_coarse", "", ("Lineart",), weights="lineart/sk_model2.pth"),
    Module("lineart", "lineart_realistic", ("Lineart",), weights="lineart/sk_model.pth"),
    Module(
        "mediapipe_face",
        "",
        (),
        slider_1=Slider("Max Faces", 1, 10, 1, 1),
        slider_2=Slider("Min Face Confidence", 0.01, 1.0, 0.01, 0.5),
        weights="those in the mediapipe package",
    ),
    Module(
        "mlsd",
        "",
        ("MLSD",),
        slider_1=Slider("MLSD Value Threshold", 0.01, 2.0, 0.01, 0.1),
        slider_2=Slider("MLSD Distance Threshold", 0.01, 20.0, 0.01, 0.1),
        priority=100,
        weights="mlsd/mlsd_large_512_fp32.pth",
    ),
    Module("mobile_sam", "", ("Segmentation",), weights="mobile_sam/mobile_sam.pt"),
    Module("normal_bae", "", ("NormalMap",), priority=100, weights="normal_bae/scannet.pt"),
    Module(
        "normal_dsine",
        "",
        ("NormalMap",),
        slider_1=Slider("Fov", 0, 360, 0.1, 60),
        slider_2=Slider("Iterations", 1, 20, 1, 5),
        weights="normal_dsine/dsine.pt",
    ),
    Module(
        "normal_map",
        "normal_midas",
        ("NormalMap",),
        slider_1=Slider("Normal Background Threshold", 0.0, 1.0, 0.01, 0.4),
        weights="midas/dpt_hybrid-midas-501f0c75.pt",
    ),
    Module("openpose", "", ("OpenPose",), weights=_OPENPOSE),
    Module("openpose_face", "", ("OpenPose",), weights=_OPENPOSE),
    Module("openpose_faceonly", "", ("OpenPose",), weights=_OPENPOSE),
    Module("openpose_full", "", ("OpenPose",), priority=100, weights=_OPENPOSE),
    Module("openpose_hand", "", ("OpenPose",), weights=_OPENPOSE),
    Module("reference_adain", "", ("Reference",), slider_1=_FIDELITY, model_free=True),
    Module("reference_adain+attn", "", ("Reference",), slider_1=_FIDELITY, model_free=True),
    Module(
        "reference_only",
        "",
        ("Reference",),
        slider_1=_FIDELITY,
        priority=100,
        model_free=True,
    ),
    Module(
        "revision_clipvision",
        "",
        ("Revision",),
        slider_1=_NOISE,
        priority=100,
        model_free=True,
        weights="clip_vision/clip_g.pth",
    ),
    Module(
        "revision_ignore_prompt",
        "",
        ("Revision",),
        slider_1=_NOISE,
        model_free=True,
        weights="clip_vision/clip_g.pth",
    ),
    Module("scribble_hed", "", ("Scribble", "SparseCtrl"), weights=_HED),
    Module(
        "pidinet_scribble", "scribble_pidinet", ("Scribble", "SparseCtrl"), priority=100, weights=_PIDINET
    ),
    Module("anime_face_segment", "seg_anime_face", ("Segmentation",), weights="anime_face_segment/UNet.pth"),
    Module(
        "oneformer_ade20k",
        "seg_ofade20k",
        ("Segmentation",),
        priority=100,
        weights="oneformer/250_16_swin_l_oneformer_ade20k_160k.pth",
    ),
    Module(
        "oneformer_coco",
        "seg_ofcoco",
        ("Segmentation",),
        weights="oneformer/150_16_swin_l_oneformer_coco_100ep.pth",
    ),
    Module("segmentation", "seg_ufade20k", ("Segmentation",), weights="uniformer/upernet_global_small.pth"),
    Module("hed", "softedge_hed", ("SoftEdge",), weights=_HED),
    Module("hed_safe", "softedge_hedsafe", ("SoftEdge",), weights=_HED),
    Module("pidinet", "softedge_pidinet", ("SoftEdge",), priority=100, weights=_PIDINET),
    Module("pidinet_safe", "softedge_pidisafe", ("SoftEdge",), weights=_PIDINET),
    Module("softedge_teed", "", ("SoftEdge",), slider_1=_SAFE_STEPS, weights="TEED/7_model.pth"),
    Module(
        "softedge_anyline",
        "",
        ("SoftEdge",),
        Slider("Resolution", 64, 2048, 8, 1280),
        slider_1=_SAFE_STEPS,
        weights="TEED/MTEED.pth",
    ),
    Module("pidinet_sketch", "t2ia_sketch_pidi", ("T2I-Adapter",), weights=_PIDINET),
    Module("clip_vision", "t2ia_style_clipvision", ("T2I-Adapter",), weights="clip_vision/clip_vitl.pth"),
)

MODULES: Mapping[str, Module] = {one.name: one for one in _ALL}
_BY_LABEL: Mapping[str, Module] = {one.shown: one for one in _ALL}


NETWORK_FILES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("hed", "hed_safe", "scribble_hed"), (_HED,)),
    **dict.fromkeys(("pidinet", "pidinet_safe", "pidinet_scribble", "pidinet_sketch"), (_PIDINET,)),
    "softedge_teed": ("TEED/7_model.pth",),
    "softedge_anyline": ("TEED/MTEED.pth",),
    "lineart": ("lineart/sk_model.pth",),
    "lineart_coarse": ("lineart/sk_model2.pth",),
    "lineart_anime": ("lineart_anime/netG.pth",),
    "lineart_anime_denoise": ("manga_line/erika.pth",),
    "mlsd": ("mlsd/mlsd_large_512_fp32.pth",),
    **dict.fromkeys(("depth", "normal_map"), ("midas/dpt_hybrid-midas-501f0c75.pt",)),
    "inpaint_only+lama": ("lama/ControlNetLama.pth",),
    "segmentation": ("uniformer/upernet_global_small.pth",),
    "anime_face_segment": ("anime_face_segment/UNet.pth",),
    "oneformer_ade20k": ("oneformer/250_16_swin_l_oneformer_ade20k_160k.pth",),
    "oneformer_coco": ("oneformer/150_16_swin_l_oneformer_coco_100ep.pth",),
    "mobile_sam": ("mobile_sam/mobile_sam.pt",),
    "depth_leres": ("leres/res101.pth",),
    "depth_leres++": ("leres/res101.pth", "leres/latest_net_G.pth"),
    "depth_zoe": ("zoedepth/ZoeD_M12_N.pt",),
    "normal_bae": ("normal_bae/scannet.pt",),
    "normal_dsine": ("normal_dsine/dsine.pt",),
    "depth_anything": ("depth_anything/depth_anything_vitl14.pth",),
    "depth_anything_v2": ("depth_anything_v2/depth_anything_v2_vitl.safetensors",),
    "animal_openpose": (_YOLOX, _ANIMAL),
    "dw_openpose_full": (_YOLOX, "openpose/dw-ll_ucoco_384.onnx"),
    "facexlib": FACE_PARTS_FILES,
    "instant_id_face_keypoints": INSTANT_ID_FILES[:1],
    "mediapipe_face": (),  # its package brings them
    "openpose": (_BODY,),
    "openpose_face": (_BODY, _FACE_POINTS),
    "openpose_faceonly": (_BODY, _FACE_POINTS),
    "openpose_hand": (_BODY, _HAND),
    "openpose_full": (_BODY, _HAND, _FACE_POINTS),
}
"""The preprocessors that are networks and are built here, with the weights each takes: the names that
the extension gives them below its ``annotator/downloads``."""


EMBEDDING_FILES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("ip-adapter_clip_sd15", "ip-adapter_clip_sdxl_plus_vith"), (CLIP_H,)),
    **dict.fromkeys(("ip-adapter_clip_sdxl", "revision_clipvision", "revision_ignore_prompt"), (CLIP_G,)),
    "clip_vision": (CLIP_L,),
    "ip-adapter_face_id": FACE_ID_FILES,
    PULID: PULID_FILES,
    "ip-adapter_face_id_plus": (*FACE_ID_FILES, CLIP_H),
    "instant_id_face_embedding": INSTANT_ID_FILES,
}
"""The same for those that answer with numbers instead of a map."""
AUTO = "ip-adapter-auto"
"""Stands for the preprocessor that goes with the unit's model."""


REFUSED: Mapping[str, str] = dict.fromkeys(
    ("densepose", "densepose_parula"),
    "a TorchScript archive: its network is code in the file, and this service runs no code of a model file",
)
"""Preprocessors that are not here for a reason of their own."""


def find_module(name: str) -> Module | None:
    """A preprocessor by the name or the label that the extension gives it."""
    return _BY_LABEL.get(name) or MODULES.get(name)


def sorted_modules() -> tuple[Module, ...]:
    """``none`` first, then by priority and label, both downwards, as the extension lists them."""
    rest = [one for one in _ALL if one.name != "none"]
    return (MODULES["none"], *sorted(rest, key=lambda one: f"{one.priority:08d}{one.shown}", reverse=True))


def weight_free_names() -> tuple[str, ...]:
    return tuple(one.name for one in sorted_modules() if not one.weights)


def module_list(alias_names: bool = False) -> dict[str, Any]:
    """What ``GET /controlnet/module_list`` answers."""
    found = sorted_modules()

    def name(one: Module) -> str:
        return one.shown if alias_names else one.name

    return {
        "module_list": [name(one) for one in found],
        "module_detail": {
            name(one): {
                "model_free": one.model_free,
                "sliders": [
                    {
                        "name": slider.label,
                        "value": slider.value,
                        "min": slider.minimum,
                        "max": slider.maximum,
                        "step": slider.step,
                    }
                    for slider in (one.resolution, one.slider_1, one.slider_2)
                    if slider.visible
                ],
            }
            for one in found
        },
    }
