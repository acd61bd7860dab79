"""The bodies of the native routes: what the webui 1.10.1 takes, field by field, and what it answers.

Names, defaults and titles are the wire format. Fields of a request may be null, which means the
same as leaving them out, and numbers are read as leniently as the webui reads them (``"20"``,
``20.7`` as 20 steps); one picture may stand for a list of one. `OrNull` keeps null out of the
OpenAPI file, as in the webui's own.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

T = TypeVar("T")


class _NullUnsaid:
    """Takes the null out of a nullable field's JSON schema."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        said = handler(schema)
        others = [one for one in said.pop("anyOf", []) if one != {"type": "null"}]
        return {**said, **others[0]} if others else said


OrNull = Annotated[T | None, _NullUnsaid()]


def or_null(kind: Any) -> Any:
    """`OrNull` of a type that is only known when a model is made."""
    return Annotated[kind | None, _NullUnsaid()]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and math.isfinite(value) else value


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, str) and value else value


Pictures = Annotated[list[Any], BeforeValidator(_one_or_more)]
Whole = Annotated[int, BeforeValidator(_whole)]
Unit = Annotated[float, Field(ge=0, le=1)]

NO_NAMESPACES = ConfigDict(protected_namespaces=())
_NUMBERS_AS_TEXT = ConfigDict(coerce_numbers_to_str=True, protected_namespaces=())


class _Generation(BaseModel):
    """What txt2img and img2img have in common."""

    model_config = _NUMBERS_AS_TEXT

    prompt: OrNull[str] = ""
    negative_prompt: OrNull[str] = ""
    styles: OrNull[list[str]] = None
    seed: OrNull[Whole] = -1
    subseed: OrNull[Whole] = -1
    subseed_strength: OrNull[float] = 0.0
    seed_resize_from_h: OrNull[Whole] = -1
    seed_resize_from_w: OrNull[Whole] = -1
    sampler_name: OrNull[str] = None
    scheduler: OrNull[str] = None
    batch_size: OrNull[Whole] = 1
    n_iter: OrNull[Whole] = 1
    steps: OrNull[Whole] = 50
    cfg_scale: OrNull[float] = 7.0
    width: OrNull[Whole] = 512
    height: OrNull[Whole] = 512
    restore_faces: OrNull[bool] = None
    tiling: OrNull[bool] = None
    do_not_save_samples: OrNull[bool] = False
    do_not_save_grid: OrNull[bool] = False
    eta: OrNull[float] = None
    denoising_strength: OrNull[float] = None
    s_min_uncond: OrNull[float] = None
    s_churn: OrNull[float] = None
    s_tmax: OrNull[float] = None
    s_tmin: OrNull[float] = None
    s_noise: OrNull[float] = None
    override_settings: OrNull[dict[str, Any]] = None
    override_settings_restore_afterwards: OrNull[bool] = True
    refiner_checkpoint: OrNull[str] = None
    refiner_switch_at: OrNull[float] = None
    disable_extra_networks: OrNull[bool] = False
    firstpass_image: OrNull[str] = None
    comments: OrNull[dict[str, Any]] = None


class _Txt2Img(_Generation):
    enable_hr: OrNull[bool] = False
    firstphase_width: OrNull[Whole] = 0
    firstphase_height: OrNull[Whole] = 0
    hr_scale: OrNull[float] = 2.0
    hr_upscaler: OrNull[str] = None
    hr_second_pass_steps: OrNull[Whole] = 0
    hr_resize_x: OrNull[Whole] = 0
    hr_resize_y: OrNull[Whole] = 0
    hr_checkpoint_name: OrNull[str] = None
    hr_sampler_name: OrNull[str] = None
    hr_scheduler: OrNull[str] = None
    hr_prompt: OrNull[str] = ""
    hr_negative_prompt: OrNull[str] = ""


class _Img2Img(_Generation):
    denoising_strength: OrNull[float] = 0.75
    init_images: OrNull[Pictures] = None
    resize_mode: OrNull[Whole] = 0
    image_cfg_scale: OrNull[float] = None
    mask: OrNull[str] = None
    mask_blur_x: OrNull[Whole] = 4
    mask_blur_y: OrNull[Whole] = 4
    mask_blur: OrNull[Whole] = None
    mask_round: OrNull[bool] = True
    inpainting_fill: OrNull[Whole] = 0
    inpaint_full_res: OrNull[bool] = True
    inpaint_full_res_padding: OrNull[Whole] = 0
    inpainting_mask_invert: OrNull[Whole] = 0
    initial_noise_multiplier: OrNull[float] = None
    latent_mask: OrNull[str] = None


class _Asking(BaseModel):
    """What the API adds: scripts, and what is to come back."""

    force_task_id: OrNull[str] = None
    sampler_index: OrNull[str] = "Euler"
    script_name: OrNull[str] = None
    script_args: OrNull[list[Any]] = []
    send_images: OrNull[bool] = True
    save_images: OrNull[bool] = False
    alwayson_scripts: OrNull[dict[str, Any]] = {}
    infotext: OrNull[str] = None


# Fields come in the order of the bases from right to left, which is the webui's order.
class StableDiffusionProcessingTxt2Img(_Asking, _Txt2Img): ...


class StableDiffusionProcessingImg2Img(_Asking, _Img2Img):
    include_init_images: OrNull[bool] = False


class TextToImageResponse(BaseModel):
    images: OrNull[list[str]] = Field(None, title="Image", description="The pictures, in base64.")
    parameters: dict[str, Any]
    info: str


class ImageToImageResponse(TextToImageResponse): ...


# -- extras -----------------------------------------------------------------------------------------


class _Extras(BaseModel):
    model_config = _NUMBERS_AS_TEXT

    resize_mode: Literal[0, 1] = Field(0, title="Resize Mode", description="0: by a factor; 1: to a size.")
    show_extras_results: bool = Field(True, title="Show results", description="Send the picture back?")
    gfpgan_visibility: Unit = Field(0.0, title="GFPGAN Visibility")
    codeformer_visibility: Unit = Field(0.0, title="CodeFormer Visibility")
    codeformer_weight: Unit = Field(0.0, title="CodeFormer Weight")
    upscaling_resize: float = Field(2, gt=0, title="Upscaling Factor", description="For resize_mode 0.")
    upscaling_resize_w: Whole = Field(512, ge=1, title="Target Width", description="For resize_mode 1.")
    upscaling_resize_h: Whole = Field(512, ge=1, title="Target Height", description="For resize_mode 1.")
    upscaling_crop: bool = Field(True, title="Crop to fit", description="Crop to the target size?")
    upscaler_1: str = Field("None", title="Main upscaler", description="See /sdapi/v1/upscalers.")
    upscaler_2: str = Field("None", title="Secondary upscaler", description="Blended over the first.")
    extras_upscaler_2_visibility: Unit = Field(0.0, title="Secondary upscaler visibility")
    upscale_first: bool = Field(False, title="Upscale first", description="Before restoring faces?")


class ExtrasSingleImageRequest(_Extras):
    image: str = Field("", title="Image", description="The picture, in base64.")


class FileData(BaseModel):
    data: str = Field(title="File data", description="The file, in base64.")
    name: str = Field(title="File name")


class ExtrasBatchImagesRequest(_Extras):
    imageList: list[FileData] = Field(title="Images", description="The pictures, in base64.")


class ExtrasSingleImageResponse(BaseModel):
    html_info: str = Field(title="HTML info", description="What was done, as HTML.")
    image: OrNull[str] = Field(None, title="Image", description="The picture, in base64.")


class ExtrasBatchImagesResponse(BaseModel):
    html_info: str = Field(title="HTML info", description="What was done, as HTML.")
    images: list[str] = Field(title="Images", description="The pictures, in base64.")


# -- one picture in, words out ----------------------------------------------------------------------


class PNGInfoRequest(BaseModel):
    image: str = Field(title="Image", description="The picture, in base64.")


class PNGInfoResponse(BaseModel):
    info: str = Field(title="Image info", description="The infotext.")
    items: dict[str, Any] = Field(title="Items", description="What else the file carries.")
    parameters: dict[str, Any] = Field(title="Parameters", description="The infotext, field by field.")


class InterrogateRequest(BaseModel):
    image: str = Field("", title="Image", description="The picture, in base64.")
    model: str = Field("clip", title="Model", description="clip or deepdanbooru.")


class ProgressResponse(BaseModel):
    progress: float = Field(title="Progress", description="0 to 1.")
    eta_relative: float = Field(title="ETA in secs")
    state: dict[str, Any] = Field(title="State", description="Where the running job is.")
    current_image: OrNull[str] = Field(None, title="Current image", description="A preview, in base64.")
    textinfo: OrNull[str] = Field(None, title="Info text", description="What the WebUI shows.")


# -- lists ------------------------------------------------------------------------------------------


class _Item(BaseModel):
    model_config = NO_NAMESPACES


class SamplerItem(_Item):
    name: str
    aliases: list[str]
    options: dict[str, str]


class SchedulerItem(_Item):
    name: str
    label: str
    aliases: OrNull[list[str]] = None
    default_rho: OrNull[float] = None
    need_inner_model: OrNull[bool] = Field(None, title="Needs Inner Model")


class UpscalerItem(_Item):
    name: str
    model_name: OrNull[str] = None
    model_path: OrNull[str] = Field(None, title="Path")
    model_url: OrNull[str] = Field(None, title="URL")
    scale: OrNull[float] = None


class LatentUpscalerModeItem(_Item):
    name: str


class SDModelItem(_Item):
    title: str
    model_name: str
    hash: OrNull[str] = Field(None, title="Short hash")
    sha256: OrNull[str] = Field(None, title="sha256 hash")
    filename: str
    config: OrNull[str] = Field(None, title="Config file")


class SDVaeItem(_Item):
    model_name: str
    filename: str


class HypernetworkItem(_Item):
    name: str
    path: OrNull[str] = None


class FaceRestorerItem(_Item):
    name: str
    cmd_dir: OrNull[str] = Field(None, title="Path")


class RealesrganItem(_Item):
    name: str
    path: OrNull[str] = None
    scale: OrNull[int] = None


class PromptStyleItem(_Item):
    name: str
    prompt: OrNull[str] = None
    negative_prompt: OrNull[str] = None


class EmbeddingItem(_Item):
    step: OrNull[int] = Field(None, title="Step", description="Training steps, if known.")
    sd_checkpoint: OrNull[str] = Field(None, title="SD Checkpoint", description="Hash it was trained on.")
    sd_checkpoint_name: OrNull[str] = Field(
        None, title="SD Checkpoint Name", description="What its trainer called the checkpoint."
    )
    shape: int = Field(title="Shape", description="Length of each vector.")
    vectors: int = Field(title="Vectors", description="How many vectors.")


class EmbeddingsResponse(_Item):
    loaded: dict[str, EmbeddingItem] = Field(title="Loaded", description="Usable embeddings.")
    skipped: dict[str, EmbeddingItem] = Field(title="Skipped", description="Those of another width.")


class MemoryResponse(_Item):
    ram: dict[str, Any] = Field(title="RAM", description="Bytes of this machine.")
    cuda: dict[str, Any] = Field(title="CUDA", description="Bytes of the GPU.")


class ScriptsList(_Item):
    txt2img: OrNull[list[Any]] = Field(None, title="Txt2img", description="Names of scripts.")
    img2img: OrNull[list[Any]] = Field(None, title="Img2img", description="Names of scripts.")


class ScriptArg(_Item):
    label: OrNull[str] = Field(None, title="Label")
    value: OrNull[Any] = Field(None, title="Value", description="Its default.")
    minimum: OrNull[Any] = Field(None, title="Minimum")
    maximum: OrNull[Any] = Field(None, title="Maximum")
    step: OrNull[Any] = Field(None, title="Step")
    choices: OrNull[list[str]] = Field(None, title="Choices")


class ScriptInfo(_Item):
    name: OrNull[str] = Field(None, title="Name")
    is_alwayson: OrNull[bool] = Field(None, title="IsAlwayson")
    is_img2img: OrNull[bool] = Field(None, title="IsImg2img")
    args: list[ScriptArg] = Field(title="Arguments")


class ExtensionItem(_Item):
    name: str
    remote: str
    branch: str
    commit_hash: str
    version: str
    commit_date: str
    enabled: bool


class CreateResponse(_Item):
    info: str = Field(title="Create info")


class TrainResponse(_Item):
    info: str = Field(title="Train info")
