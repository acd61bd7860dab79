"""What the service was started with: one frozen `Settings` of the values the rooms need.

Typed, with units in their names. Every flag is declared in :mod:`sd_cloud.flags` and turned into
a field in :mod:`sd_cloud.settings_from_flags`. Nothing else in the package reads the environment,
except for the credentials of OSS, which belong to oss2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 1024 * 1024


@dataclass(frozen=True)
class ModelFolders:
    """Where model files are looked for, in the webui's order. ``loras``: of LoRA and of LyCORIS files."""

    checkpoints: tuple[Path, ...]
    vaes: tuple[Path, ...]
    tiny_vaes: tuple[Path, ...]  # TAESD
    loras: tuple[Path, ...]
    embeddings: tuple[Path, ...]
    hypernetworks: tuple[Path, ...]
    controlnets: tuple[Path, ...]
    annotators: tuple[Path, ...]
    esrgan: tuple[Path, ...]
    dat: tuple[Path, ...]
    hat: tuple[Path, ...]
    scunet: tuple[Path, ...]
    swinir: tuple[Path, ...]
    gfpgan: tuple[Path, ...]
    codeformer: tuple[Path, ...]
    blip: tuple[Path, ...]
    clip: tuple[Path, ...]
    deepbooru: tuple[Path, ...]

    @classmethod
    def below(cls, data_dir: Path, models_dir: Path | None = None) -> ModelFolders:
        """The webui's own folders below one data dir."""
        models = models_dir or data_dir / "models"
        return cls(
            checkpoints=(models / "Stable-diffusion",),
            vaes=(models / "VAE",),
            tiny_vaes=(models / "VAE-taesd",),
            loras=(models / "Lora", models / "LyCORIS"),
            embeddings=(data_dir / "embeddings",),
            hypernetworks=(models / "hypernetworks",),
            controlnets=(models / "ControlNet",),
            annotators=(
                models / "ControlNet" / "annotators",
                data_dir / "extensions" / "sd-webui-controlnet" / "annotator" / "downloads",
            ),
            esrgan=(models / "ESRGAN", models / "RealESRGAN"),
            dat=(models / "DAT",),
            hat=(models / "HAT",),
            scunet=(models / "ScuNET",),
            swinir=(models / "SwinIR",),
            gfpgan=(models / "GFPGAN",),
            codeformer=(models / "Codeformer",),
            blip=(models / "BLIP",),
            clip=(models / "CLIP",),
            deepbooru=(models / "torch_deepdanbooru",),
        )


@dataclass(frozen=True)
class Precision:
    """How weights are held and computed, the webui's words."""

    no_half: bool = False
    no_half_vae: bool = False
    precision: str = "autocast"  # "full", "autocast" or "half"
    medvram: bool = False
    medvram_sdxl: bool = False
    lowvram: bool = False
    xformers: bool = False
    device_id: str | None = None
    on_cpu: bool = False  # --use-cpu all: whatever GPU there is


@dataclass(frozen=True)
class FetchLimits:
    """What a downloaded or decoded picture may cost."""

    limit_bytes: int = 32 * MIB
    seconds: float = 20.0
    limit_pixels: int = 64_000_000
    redirects: int = 5
    types: tuple[str, ...] = ("png", "jpeg", "webp", "tiff", "bmp", "gif")


@dataclass(frozen=True)
class OssSettings:
    """Which ``oss://bucket/prefix`` may be written and read, and how a mount maps to one.

    Credentials come from OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET.
    """

    allow: tuple[str, ...] = ()  # "bucket/prefix"
    mounts: tuple[tuple[str, str], ...] = ()  # ("/data", "oss://bucket/prefix")
    endpoint: str | None = None


@dataclass(frozen=True)
class Settings:
    """Everything the service was started with."""

    data_dir: Path
    state_dir: Path
    folders: ModelFolders
    # serving
    host: str = "127.0.0.1"
    port: int = 7860
    listen: bool = False
    public_url: str | None = None
    subpath: str = ""
    nowebui: bool = False
    api: bool = True
    api_log: bool = False
    time_log: bool = False
    loglevel: str = "INFO"
    cors_allow_origins: tuple[str, ...] = ()
    cors_allow_origins_regex: str | None = None
    tls_keyfile: Path | None = None
    tls_certfile: Path | None = None
    keep_alive_seconds: int = 30
    api_server_stop: bool = False
    drain_seconds: float = 60.0
    # who may
    tokens: tuple[str, ...] = field(default=(), repr=False)
    api_auth: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    gradio_auth: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    no_auth: bool = False
    webhook_secret: str | None = field(default=None, repr=False)
    # links and files
    image_link_allow: tuple[str, ...] = ()
    save_dir_roots: tuple[Path, ...] = ()
    fetch: FetchLimits = field(default_factory=FetchLimits)
    oss: OssSettings = field(default_factory=OssSettings)
    link_seconds: int = 24 * 3600
    # engine
    precision: Precision = field(default_factory=Precision)
    ckpt: Path | None = None  # one more checkpoint, the first of all; it need not be there
    vae_path: Path | None = None  # the one VAE, whatever requests and options say
    no_hashing: bool = False
    sd_dynamic_cache: bool = False
    min_ram_reserved_gib: float = 4.0
    engine_start_seconds: float = 120.0
    max_delivery: int = 2
    # queue
    queue_limit: int = 1000
    job_seconds: float = 3600.0
    database_url: str | None = None
    task_retention_hours: float | None = None  # None: 24 for DashScope's tasks, 720 for others
    async_service: str = "sd_async"
    queue_payload_bytes: int = 8 * 1024
    dashscope_models: tuple[tuple[str, str], ...] = ()  # (DashScope's name, checkpoint)
    # the webui's options
    options_file: Path | None = None  # instead of the data dir's config.json
    frozen_options: tuple[str, ...] = ()  # names that nobody can change; "*" stands for all
    frozen_sections: tuple[str, ...] = ()  # sections of the settings page whose options nobody can change
    paths_frozen: bool = False  # --hide-ui-dir-config: nobody can change where pictures are saved
    styles_files: tuple[str, ...] = ()  # instead of the data dir's styles.csv; names may be patterns
    # the pages
    filebrowser: bool = False
    always_hide_tabs: tuple[str, ...] = ()
    enable_nsfw_censor: bool = False
    blade: bool = False
    # every flag as given, by its webui name, for /sdapi/v1/cmd-flags
    flags: tuple[tuple[str, object], ...] = ()

    @property
    def outputs_dir(self) -> Path:
        return self.data_dir / "outputs"

    @property
    def styles_patterns(self) -> tuple[str, ...]:
        return self.styles_files or (str(self.data_dir / "styles.csv"),)

    @property
    def exposed(self) -> bool:
        """Can callers from other machines reach it?"""
        return self.listen or self.host not in ("127.0.0.1", "localhost", "::1")


def settings_below(data_dir: Path, **changes: object) -> Settings:
    """Defaults for a data dir; what tests and scripts start from."""
    data_dir = Path(data_dir).resolve()
    given: dict[str, object] = {
        "data_dir": data_dir,
        "state_dir": data_dir / "state",
        "folders": ModelFolders.below(data_dir),
    }
    return Settings(**{**given, **changes})  # type: ignore[arg-type]
