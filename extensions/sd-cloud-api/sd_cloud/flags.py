"""Every launch flag, declared once.

The standalone launcher reads them all; the extension's ``preload.py`` adds to the webui's parser
only those that are ours. The README's table is generated from here (``scripts/launch/flag_table.py``).
Nothing but the standard library is imported: the webui reads this before its own set-up.
"""

from __future__ import annotations

from typing import Any

from sd_cloud.flag import Flag, Kind, Origin


def _ours(name: str, help: str, kind: Kind = "switch", default: Any = None, **more: Any) -> Flag:
    return Flag(name, help, kind, default, "ours", **more)


def _webui(name: str, help: str, kind: Kind = "switch", default: Any = None, **more: Any) -> Flag:
    return Flag(name, help, kind, default, "webui", **{"standalone": "no meaning", **more})


# The guide's own, and what this service adds.
OURS: tuple[Flag, ...] = (
    _ours("--blade", "compile the model for more speed", standalone="not yet"),
    _ours("--filebrowser", "show the FileBrowser page for models and pictures"),
    _ours("--time-log", "log method, route, status, seconds and job id of every request"),
    _ours("--enable-nsfw-censor", "check every picture and blur what is unsafe"),
    _ours(
        "--always-hide-tabs",
        "tabs of the page that are not shown",
        "list",
        metavar="TAB",
    ),
    _ours(
        "--min-ram-reserved",
        "GiB of RAM to leave free when checkpoints are kept in it",
        "float",
        4.0,
        metavar="GIB",
    ),
    _ours(
        "--sd-dynamic-cache", "keep recently used checkpoints in RAM as long as --min-ram-reserved stays free"
    ),
    _ours("--root-extensions", "share one extensions folder between all users", standalone="not yet"),
    _ours(
        "--token",
        "a caller must send this token (Authorization: TOKEN or Bearer TOKEN)",
        "list",
        metavar="TOKEN",
        secret=True,
    ),
    _ours("--no-auth", "ask nobody who they are: for a service behind a gateway that does"),
    _ours(
        "--public-url",
        "where callers reach this service; links to pictures start with it",
        "text",
        metavar="URL",
    ),
    _ours(
        "--state-dir",
        "local folder for the task store, the token and link keys; never a network mount",
        "path",
        metavar="DIR",
    ),
    _ours(
        "--database-url",
        "task store in PostgreSQL instead of the state dir: postgresql+psycopg://user@host/name",
        "text",
        metavar="URL",
        secret=True,
    ),
    _ours(
        "--drain-seconds", "how long a running job may go on after SIGTERM", "float", 60.0, metavar="SECONDS"
    ),
    _ours(
        "--save-dir-root", "another folder below which a request's save_dir may lie", "list", metavar="DIR"
    ),
    _ours("--link-seconds", "how long a link to a picture stays valid", "int", 24 * 3600, metavar="SECONDS"),
    _ours(
        "--image-link-allow",
        "private addresses that picture links may reach: CIDR or host",
        "list",
        metavar="CIDR|HOST",
    ),
    _ours(
        "--image-link-max-mib", "largest picture that is downloaded or decoded", "float", 32.0, metavar="MIB"
    ),
    _ours(
        "--image-link-seconds",
        "longest time one picture's download may take",
        "float",
        20.0,
        metavar="SECONDS",
    ),
    _ours("--image-link-redirects", "most redirects a picture link may take", "int", 5, metavar="COUNT"),
    _ours("--image-max-megapixels", "most pixels an input picture may have", "float", 64.0, metavar="MPX"),
    _ours(
        "--image-types",
        "picture types that are read",
        "list",
        ["png", "jpeg", "webp", "tiff", "bmp", "gif"],
        metavar="TYPE",
    ),
    _ours(
        "--oss-allow",
        "bucket/prefix that requests may write to and read from as oss://bucket/prefix",
        "list",
        metavar="BUCKET/PREFIX",
    ),
    _ours(
        "--oss-mount",
        "which oss:// prefix is mounted at a path: /data=oss://bucket/prefix",
        "list",
        metavar="PATH=OSS",
    ),
    _ours(
        "--oss-endpoint",
        "OSS endpoint; keys come from OSS_ACCESS_KEY_ID and OSS_ACCESS_KEY_SECRET",
        "text",
        metavar="URL",
    ),
    _ours(
        "--queue-limit",
        "most waiting jobs; beyond it a request is answered 429",
        "int",
        1000,
        metavar="COUNT",
    ),
    _ours(
        "--webhook-secret",
        "what calls to callback_url are signed with (default: one in the state dir)",
        "text",
        metavar="WHSEC",
        secret=True,
    ),
    _ours("--job-seconds", "longest time one job may take", "float", 3600.0, metavar="SECONDS"),
    _ours(
        "--max-delivery",
        "how often a job is given to an engine in all, when engines die",
        "int",
        2,
        metavar="COUNT",
    ),
    _ours(
        "--engine-start-seconds",
        "longest time an engine may take to start",
        "float",
        120.0,
        metavar="SECONDS",
    ),
    _ours(
        "--dashscope-model",
        "which checkpoint a DashScope model name stands for (default: the first of its base)",
        "list",
        metavar="NAME=CHECKPOINT",
    ),
    _ours(
        "--async-service",
        "name of the asynchronous queue service",
        "text",
        "sd_async",
        metavar="NAME",
    ),
    _ours(
        "--queue-payload-kib",
        "largest message of the asynchronous queue",
        "float",
        8.0,
        metavar="KIB",
    ),
    _ours(
        "--task-retention",
        "how many hours finished tasks are kept (without it: 24 for DashScope's, 720 for others)",
        "float",
        metavar="HOURS",
    ),
)

# The webui's own, in the order of its reference page, so that a command line carries over.
WEBUI: tuple[Flag, ...] = (
    _webui("-f", "run as root"),
    _webui("--update-all-extensions", "update extensions at start"),
    _webui("--skip-python-version-check", "do not look at Python's version"),
    _webui("--skip-torch-cuda-test", "do not test CUDA at start"),
    _webui("--reinstall-xformers", "install xformers again"),
    _webui("--reinstall-torch", "install torch again"),
    _webui("--update-check", "look for updates at start"),
    _webui("--test-server", "configure the server for the webui's own tests"),
    _webui("--log-startup", "log what happens at start"),
    _webui("--skip-prepare-environment", "do not prepare the environment at start"),
    _webui("--skip-install", "do not install packages at start"),
    _webui("--dump-sysinfo", "write a system report and stop"),
    _webui(
        "--loglevel",
        "least level that is logged",
        "text",
        metavar="LEVEL",
        standalone="used",
        choices=("CRITICAL", "ERROR", "WARNING", "INFO", "DEBUG"),
    ),
    _webui("--do-not-download-clip", "never download CLIP (nothing is ever downloaded)"),
    _webui(
        "--data-dir",
        "folder of models, outputs, config.json and styles.csv",
        "path",
        "data",
        metavar="DIR",
        standalone="used",
    ),
    _webui(
        "--models-dir",
        "folder of models, instead of the data dir's",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _webui("--config", "yaml for checkpoints that have none", "path", metavar="FILE"),
    _webui(
        "--ckpt",
        "one more checkpoint: the first in the list, and the one that is used",
        "path",
        metavar="FILE",
        standalone="used",
    ),
    _webui("--ckpt-dir", "another folder of checkpoints", "path", metavar="DIR", standalone="used"),
    _webui("--vae-dir", "another folder of VAEs", "path", metavar="DIR", standalone="used"),
    _webui("--gfpgan-dir", "another folder of GFPGAN models", "path", metavar="DIR", standalone="used"),
    _webui("--gfpgan-model", "file name of the GFPGAN model", "text", metavar="FILE"),
    _webui("--no-half", "keep the model in 32-bit floats", standalone="used"),
    _webui("--no-half-vae", "keep the VAE in 32-bit floats", standalone="used"),
    _webui("--no-progressbar-hiding", "show the page's progress bar"),
    _webui("--max-batch-count", "nothing", "int", 16, metavar="COUNT"),
    _webui(
        "--embeddings-dir", "another folder of textual inversions", "path", metavar="DIR", standalone="used"
    ),
    _webui("--textual-inversion-templates-dir", "training templates", "path", metavar="DIR"),
    _webui("--hypernetwork-dir", "another folder of hypernetworks", "path", metavar="DIR", standalone="used"),
    _webui("--localizations-dir", "folder of the page's translations", "path", metavar="DIR"),
    _webui("--allow-code", "run scripts from the page (never allowed here)"),
    _webui("--medvram", "use less GPU memory, a little slower", standalone="used"),
    _webui("--medvram-sdxl", "--medvram for SDXL only", standalone="used"),
    _webui("--lowvram", "use very little GPU memory, much slower", standalone="used"),
    _webui("--lowram", "load weights to the GPU instead of RAM"),
    _webui("--always-batch-cond-uncond", "nothing"),
    _webui("--unload-gfpgan", "nothing"),
    _webui(
        "--precision",
        "how the model computes",
        "text",
        "autocast",
        choices=("full", "half", "autocast"),
        standalone="used",
    ),
    _webui("--upcast-sampling", "sample in 32 bits with 16-bit weights"),
    _webui("--share", "publish through Gradio's tunnel (never done here)"),
    _webui("--ngrok", "publish through ngrok (never done here)", "text", metavar="TOKEN", secret=True),
    _webui("--ngrok-region", "nothing", "text", "", metavar="REGION"),
    _webui("--ngrok-options", "options of ngrok", "text", metavar="JSON", secret=True),
    _webui("--enable-insecure-extension-access", "let the page install extensions (never allowed here)"),
    _webui(
        "--codeformer-models-path",
        "another folder of CodeFormer models",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _webui(
        "--gfpgan-models-path", "another folder of GFPGAN models", "path", metavar="DIR", standalone="used"
    ),
    _webui(
        "--esrgan-models-path", "another folder of ESRGAN models", "path", metavar="DIR", standalone="used"
    ),
    _webui("--bsrgan-models-path", "folder of BSRGAN models", "path", metavar="DIR"),
    _webui(
        "--realesrgan-models-path",
        "another folder of RealESRGAN models",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _webui("--dat-models-path", "folder of DAT models", "path", metavar="DIR"),
    _webui(
        "--clip-models-path",
        "another folder of CLIP models, for interrogation",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _webui("--xformers", "attention by xformers (install.py --gpu)", standalone="used"),
    _webui("--force-enable-xformers", "xformers without a check"),
    _webui("--xformers-flash-attention", "xformers with flash attention"),
    _webui("--deepdanbooru", "nothing"),
    _webui("--opt-split-attention", "split attention (attention is torch's own here)"),
    _webui("--opt-sub-quad-attention", "sub-quadratic attention"),
    _webui("--sub-quad-q-chunk-size", "its query chunk", "int", 1024, metavar="SIZE"),
    _webui("--sub-quad-kv-chunk-size", "its key chunk", "int", metavar="SIZE"),
    _webui("--sub-quad-chunk-threshold", "its threshold", "int", metavar="PERCENT"),
    _webui("--opt-split-attention-invokeai", "InvokeAI's attention"),
    _webui("--opt-split-attention-v1", "older split attention"),
    _webui("--opt-sdp-attention", "torch's attention (always on here)"),
    _webui("--opt-sdp-no-mem-attention", "torch's attention without its memory-efficient form"),
    _webui("--disable-opt-split-attention", "no attention optimisation"),
    _webui("--disable-nan-check", "do not look for NaN in pictures"),
    _webui(
        "--use-cpu",
        "modules that run on the CPU; `all` keeps the engine off the GPU",
        "list",
        metavar="MODULE",
        standalone="used",
    ),
    _webui("--use-ipex", "use an Intel GPU"),
    _webui("--disable-model-loading-ram-optimization", "load models the old way"),
    _webui("--listen", "serve callers from other machines (0.0.0.0)", standalone="used"),
    _webui("--port", "port to serve on", "int", 7860, metavar="PORT", standalone="used"),
    _webui("--show-negative-prompt", "nothing"),
    _webui("--ui-config-file", "the page's defaults", "path", metavar="FILE"),
    _webui("--hide-ui-dir-config", "options of where pictures are saved can't be changed", standalone="used"),
    _webui("--freeze-settings", "no option can be changed", standalone="used"),
    _webui(
        "--freeze-settings-in-sections",
        "options that can't be changed, by section of the settings page",
        "text",
        metavar="NAMES",
        standalone="used",
    ),
    _webui(
        "--freeze-specific-settings",
        "options that can't be changed",
        "text",
        metavar="NAMES",
        standalone="used",
    ),
    _webui("--ui-settings-file", "another config.json", "path", metavar="FILE", standalone="used"),
    _webui("--gradio-debug", "Gradio's debug output"),
    _webui(
        "--gradio-auth",
        "users of the page: user:password,…",
        "text",
        metavar="USER:PASSWORD",
        standalone="used",
        secret=True,
    ),
    _webui("--gradio-auth-path", "file with users of the page", "path", metavar="FILE", standalone="used"),
    _webui("--gradio-img2img-tool", "nothing", "text", metavar="NAME"),
    _webui("--gradio-inpaint-tool", "nothing", "text", metavar="NAME"),
    _webui("--gradio-allowed-path", "folders Gradio may serve", "list", metavar="DIR"),
    _webui("--opt-channelslast", "channels-last memory", standalone="no meaning"),
    _webui(
        "--styles-file",
        "styles files, instead of the data dir's styles.csv; names with * and ? stand for several",
        "list",
        metavar="FILE",
        standalone="used",
    ),
    _webui("--autolaunch", "open a browser at start"),
    _webui("--theme", "light or dark", "text", metavar="NAME"),
    _webui("--use-textbox-seed", "seeds in a text box"),
    _webui("--disable-console-progressbars", "no progress bars on the console"),
    _webui("--enable-console-prompts", "nothing"),
    _webui("--vae-path", "one VAE for everything", "path", metavar="FILE", standalone="used"),
    _webui("--disable-safe-unpickle", "load unsafe pickles (never allowed here)"),
    _webui("--api", "serve the API (always on here)", standalone="used"),
    _webui(
        "--api-auth",
        "users of the API: user:password,…",
        "text",
        metavar="USER:PASSWORD",
        standalone="used",
        secret=True,
    ),
    _webui("--api-log", "log every API request", standalone="used"),
    _webui("--nowebui", "serve the API without the page", standalone="used"),
    _webui("--ui-debug-mode", "start without a model"),
    _webui("--device-id", "the GPU to use", "text", metavar="ID", standalone="used"),
    _webui("--administrator", "administrator rights"),
    _webui(
        "--cors-allow-origins",
        "origins that may call from a browser",
        "list",
        metavar="ORIGIN",
        standalone="used",
    ),
    _webui(
        "--cors-allow-origins-regex",
        "origins that may call from a browser, as a pattern",
        "text",
        metavar="PATTERN",
        standalone="used",
    ),
    _webui("--tls-keyfile", "key for https", "path", metavar="FILE", standalone="used"),
    _webui("--tls-certfile", "certificate for https", "path", metavar="FILE", standalone="used"),
    _webui("--disable-tls-verify", "accept self-signed certificates"),
    _webui(
        "--server-name",
        "address to serve on, instead of --listen's",
        "text",
        metavar="ADDRESS",
        standalone="used",
    ),
    _webui("--gradio-queue", "nothing"),
    _webui("--no-gradio-queue", "Gradio without its queue"),
    _webui("--skip-version-check", "do not check versions"),
    _webui("--no-hashing", "never compute a checkpoint's sha256", standalone="used"),
    _webui("--no-download-sd-model", "never download a checkpoint (nothing is ever downloaded)"),
    _webui("--subpath", "path below which a proxy serves this", "text", metavar="PATH", standalone="used"),
    _webui("--add-stop-route", "nothing"),
    _webui("--api-server-stop", "let an admin stop the server over the API", standalone="used"),
    _webui(
        "--timeout-keep-alive",
        "seconds an idle connection is kept",
        "int",
        30,
        metavar="SECONDS",
        standalone="used",
    ),
    _webui("--disable-all-extensions", "load no extension"),
    _webui("--disable-extra-extensions", "load built-in extensions only"),
    _webui("--skip-load-model-at-start", "load the first checkpoint only when it is asked for"),
    _webui("--unix-filenames-sanitization", "allow every character but / in file names"),
    _webui("--filenames-max-length", "longest file name", "int", 128, metavar="COUNT"),
    _webui("--no-prompt-history", "no params.txt"),
)


def _foreign(
    origin: Origin, name: str, help: str, kind: Kind = "switch", default: Any = None, **more: Any
) -> Flag:
    return Flag(name, help, kind, default, origin, **{"standalone": "no meaning", **more})


# Defined by extensions: the webui's built-in ones, and the ControlNet extension (its preload runs
# after ours, by name, so that ours defining it would break that one's).
EXTENSIONS: tuple[Flag, ...] = (
    _foreign(
        "built-in extension",
        "--lora-dir",
        "another folder of LoRAs",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _foreign(
        "built-in extension",
        "--lyco-dir-backcompat",
        "another folder of LoRAs",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _foreign("built-in extension", "--ldsr-models-path", "folder of LDSR models", "path", metavar="DIR"),
    _foreign("built-in extension", "--scunet-models-path", "folder of ScuNET models", "path", metavar="DIR"),
    _foreign("built-in extension", "--swinir-models-path", "folder of SwinIR models", "path", metavar="DIR"),
    _foreign(
        "controlnet extension",
        "--controlnet-dir",
        "another folder of ControlNets",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _foreign(
        "controlnet extension",
        "--controlnet-annotator-models-path",
        "another folder of the weights of ControlNet preprocessors",
        "path",
        metavar="DIR",
        standalone="used",
    ),
    _foreign("controlnet extension", "--no-half-controlnet", "keep ControlNets in 32-bit floats"),
    _foreign(
        "controlnet extension",
        "--controlnet-preprocessor-cache-size",
        "cached preprocessor results",
        "int",
        16,
        metavar="COUNT",
    ),
    _foreign(
        "controlnet extension", "--controlnet-loglevel", "its log level", "text", "INFO", metavar="LEVEL"
    ),
)

FLAGS: tuple[Flag, ...] = OURS + WEBUI + EXTENSIONS
