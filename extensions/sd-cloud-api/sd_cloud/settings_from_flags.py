"""Flag values into `Settings`: the one place that knows which flag feeds which field."""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sd_cloud.command_line import parse
from sd_cloud.flags import FLAGS
from sd_cloud.settings import MIB, FetchLimits, ModelFolders, OssSettings, Precision, Settings
from sd_cloud.webhook_secret import decoded

PICTURE_TYPES = FetchLimits().types


class SettingsError(ValueError):
    """A flag's value can't be used. The message names the flag, the fact and the way out."""

    def __init__(self, flag: str, fact: str) -> None:
        super().__init__(f"{flag}: {fact}")
        self.flag = flag


def settings_from(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Command line and environment into settings. Exits with 2 on a flag that can't be read.

    Raises SettingsError for a value that can't be used.
    """
    return settings_of(parse(argv, environ).values, environ)


def settings_of(values: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Settings:
    """Settings from values by ``dest``: a parsed command line, or the webui's ``vars(cmd_opts)``.

    A value that is missing has its declared default. Raises SettingsError.
    """
    given = {flag.dest: values.get(flag.dest, flag.initial) for flag in FLAGS}
    data_dir = Path(given["data_dir"]).expanduser().resolve()
    tokens = tuple(given["token"])
    api_auth = _pairs("--api-auth", given["api_auth"])
    if given["no_auth"] and (tokens or api_auth):
        raise SettingsError("--no-auth", "contradicts --token and --api-auth; give one or the other")
    if bool(given["tls_keyfile"]) != bool(given["tls_certfile"]):
        raise SettingsError("--tls-keyfile", "and --tls-certfile are only of use together")
    return Settings(
        data_dir=data_dir,
        state_dir=_path(given["state_dir"]) or default_state_dir(data_dir, environ),
        folders=_folders(data_dir, given),
        host=given["server_name"] or ("0.0.0.0" if given["listen"] else "127.0.0.1"),
        port=_port(given["port"]),
        listen=given["listen"],
        public_url=_public_url(given["public_url"]),
        subpath=_subpath(given["subpath"]),
        nowebui=given["nowebui"],
        api=True,
        api_log=given["api_log"],
        time_log=given["time_log"],
        loglevel=given["loglevel"] or "INFO",
        cors_allow_origins=_list(given["cors_allow_origins"]),
        cors_allow_origins_regex=_pattern("--cors-allow-origins-regex", given["cors_allow_origins_regex"]),
        tls_keyfile=_path(given["tls_keyfile"]),
        tls_certfile=_path(given["tls_certfile"]),
        keep_alive_seconds=given["timeout_keep_alive"],
        api_server_stop=given["api_server_stop"],
        drain_seconds=given["drain_seconds"],
        tokens=tokens,
        api_auth=api_auth,
        gradio_auth=_pairs("--gradio-auth", given["gradio_auth"]) + _auth_file(given["gradio_auth_path"]),
        no_auth=given["no_auth"],
        webhook_secret=_webhook_secret(given["webhook_secret"]),
        image_link_allow=_addresses(given["image_link_allow"]),
        save_dir_roots=tuple(Path(one).expanduser().resolve() for one in given["save_dir_root"]),
        fetch=FetchLimits(
            limit_bytes=int(given["image_link_max_mib"] * MIB),
            seconds=given["image_link_seconds"],
            limit_pixels=int(given["image_max_megapixels"] * 1_000_000),
            redirects=given["image_link_redirects"],
            types=_types(given["image_types"]),
        ),
        oss=OssSettings(
            allow=tuple(_bucket(one) for one in given["oss_allow"]),
            mounts=tuple(_mount(one) for one in given["oss_mount"]),
            endpoint=given["oss_endpoint"],
        ),
        link_seconds=given["link_seconds"],
        precision=_precision(given),
        ckpt=_path(given["ckpt"]),
        vae_path=_file("--vae-path", given["vae_path"]),
        no_hashing=given["no_hashing"],
        sd_dynamic_cache=given["sd_dynamic_cache"],
        min_ram_reserved_gib=given["min_ram_reserved"],
        engine_start_seconds=given["engine_start_seconds"],
        max_delivery=given["max_delivery"],
        queue_limit=given["queue_limit"],
        job_seconds=given["job_seconds"],
        database_url=given["database_url"],
        task_retention_hours=given["task_retention"],
        async_service=_service_name(given["async_service"]),
        dashscope_models=tuple(_dashscope_model(one) for one in given["dashscope_model"]),
        queue_payload_bytes=int(given["queue_payload_kib"] * 1024),
        options_file=_path(given["ui_settings_file"]),
        frozen_options=("*",) if given["freeze_settings"] else _list(given["freeze_specific_settings"] or ""),
        frozen_sections=_list(given["freeze_settings_in_sections"] or ""),
        paths_frozen=given["hide_ui_dir_config"],
        styles_files=tuple(str(_path(one)) for one in _list(given["styles_file"])),
        filebrowser=given["filebrowser"],
        always_hide_tabs=tuple(given["always_hide_tabs"]),
        enable_nsfw_censor=given["enable_nsfw_censor"],
        blade=given["blade"],
        flags=tuple((flag.dest, None if flag.secret else given[flag.dest]) for flag in FLAGS),
    )


def default_state_dir(data_dir: Path, environ: Mapping[str, str]) -> Path:
    """Where a data dir's state lives: local, and the same each time for the same data dir.

    Not in the data dir itself, which is often a network mount. XDG base directory specification.
    """
    home = environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    key = hashlib.sha256(str(data_dir).encode()).hexdigest()[:12]
    return Path(home) / "sd-cloud" / f"{data_dir.name or 'root'}-{key}"


def _folders(data_dir: Path, given: Mapping[str, Any]) -> ModelFolders:
    """The data dir's own folders, with those of flags beside them or, as in the webui, instead of them."""
    own = ModelFolders.below(data_dir, _path(given["models_dir"]))

    def named(*dests: str) -> tuple[Path, ...]:
        return tuple(path for dest in dests if (path := _path(given[dest])) is not None)

    def beside(folders: tuple[Path, ...], *dests: str) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((*folders, *named(*dests))))

    def before(folders: tuple[Path, ...], *dests: str) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((*named(*dests), *folders)))

    def instead(folders: tuple[Path, ...], dest: str) -> tuple[Path, ...]:
        return named(dest) or folders

    return ModelFolders(
        checkpoints=before(own.checkpoints, "ckpt_dir"),
        vaes=beside(own.vaes, "vae_dir"),
        tiny_vaes=own.tiny_vaes,
        # The EAS edition has --lora-dir beside the user's own, where the webui has it instead.
        loras=(*beside(own.loras[:1], "lora_dir"), *instead(own.loras[1:], "lyco_dir_backcompat")),
        embeddings=instead(own.embeddings, "embeddings_dir"),
        hypernetworks=instead(own.hypernetworks, "hypernetwork_dir"),
        controlnets=beside(own.controlnets, "controlnet_dir"),
        annotators=instead(own.annotators, "controlnet_annotator_models_path"),
        esrgan=before(own.esrgan, "esrgan_models_path", "realesrgan_models_path"),
        dat=before(own.dat, "dat_models_path"),
        hat=own.hat,
        scunet=before(own.scunet, "scunet_models_path"),
        swinir=before(own.swinir, "swinir_models_path"),
        gfpgan=beside(instead(own.gfpgan, "gfpgan_models_path"), "gfpgan_dir"),
        codeformer=instead(own.codeformer, "codeformer_models_path"),
        blip=own.blip,
        clip=before(own.clip, "clip_models_path"),
        deepbooru=own.deepbooru,
    )


def _precision(given: Mapping[str, Any]) -> Precision:
    use_cpu = {str(one).lower() for one in given["use_cpu"]}
    return Precision(
        no_half=given["no_half"],
        no_half_vae=given["no_half_vae"],
        precision=given["precision"],
        medvram=given["medvram"],
        medvram_sdxl=given["medvram_sdxl"],
        lowvram=given["lowvram"],
        xformers=given["xformers"],
        device_id=given["device_id"],
        on_cpu=bool(use_cpu & {"all", "sd"}),
    )


def _path(text: str | None) -> Path | None:
    return Path(text).expanduser().absolute() if text else None


def _file(flag: str, text: str | None) -> Path | None:
    path = _path(text)
    if path is not None and not path.is_file():
        raise SettingsError(flag, f"there is no file {path}")
    return path


def _list(value: object) -> tuple[str, ...]:
    """A list as our parser gives it, or the comma-separated text that the webui's does."""
    if isinstance(value, str):
        value = value.split(",")
    return (
        tuple(str(one).strip() for one in value if str(one).strip())
        if isinstance(value, list | tuple)
        else ()
    )


def _port(value: object) -> int:
    port = 7860 if value is None else int(str(value))
    if not 0 <= port <= 65535:
        raise SettingsError("--port", f"{port} is not a port (0 to 65535)")
    return port


def _pairs(flag: str, text: str | None) -> tuple[tuple[str, str], ...]:
    pairs = []
    for part in re.split(r"[,\n]", text or ""):
        if not part.strip():
            continue
        user, colon, password = part.strip().partition(":")
        if not (user and colon and password):
            raise SettingsError(flag, "an entry is not user:password")
        pairs.append((user, password))
    return tuple(pairs)


def _auth_file(path: str | None) -> tuple[tuple[str, str], ...]:
    if not path:
        return ()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError("--gradio-auth-path", f"{path} can't be read ({error.strerror})") from error
    return _pairs("--gradio-auth-path", text)


def _public_url(text: str | None) -> str | None:
    if not text:
        return None
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError("--public-url", f"{text!r} is not an address like https://pictures.example.com")
    return text.rstrip("/")


def _subpath(text: str | None) -> str:
    return "/" + text.strip("/") if text and text.strip("/") else ""


def _pattern(flag: str, text: str | None) -> str | None:
    if not text:
        return None
    try:
        re.compile(text)
    except re.error as error:
        raise SettingsError(flag, f"{text!r} is not a regular expression ({error})") from error
    return text


def _addresses(entries: Sequence[str]) -> tuple[str, ...]:
    for entry in entries:
        if "/" in entry:
            try:
                ipaddress.ip_network(entry, strict=False)
            except ValueError as error:
                raise SettingsError("--image-link-allow", f"{entry!r} is neither CIDR nor a host") from error
    return tuple(entries)


def _types(entries: Sequence[str]) -> tuple[str, ...]:
    types = tuple(
        dict.fromkeys({"jpg": "jpeg", "tif": "tiff"}.get(one.lower(), one.lower()) for one in entries)
    )
    for one in types:
        if one not in PICTURE_TYPES:
            raise SettingsError("--image-types", f"{one!r} is not one of {', '.join(PICTURE_TYPES)}")
    return types


def _bucket(text: str) -> str:
    name = text.removeprefix("oss://").strip("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9](/.+)?", name):
        raise SettingsError("--oss-allow", f"{text!r} is not bucket or bucket/prefix")
    return name


def _service_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", text or ""):
        raise SettingsError("--async-service", f"{text!r} is not a name of letters, digits and _.-")
    return text


def _dashscope_model(text: str) -> tuple[str, str]:
    name, equals, checkpoint = text.partition("=")
    if not (name and equals and checkpoint):
        raise SettingsError("--dashscope-model", f"{text!r} is not NAME=CHECKPOINT")
    return name, checkpoint


def _webhook_secret(text: str | None) -> str | None:
    if not text:
        return None
    try:
        decoded(text)
    except ValueError as error:
        raise SettingsError("--webhook-secret", str(error)) from None
    return text


def _mount(text: str) -> tuple[str, str]:
    path, equals, address = text.partition("=")
    if not (path.startswith("/") and equals and address.startswith("oss://")):
        raise SettingsError("--oss-mount", f"{text!r} is not /path=oss://bucket/prefix")
    return path.rstrip("/") or "/", address.rstrip("/")
