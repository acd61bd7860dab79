"""What an end-to-end case is given: a running service, whichever host it lives in."""

from __future__ import annotations

import base64
import http.server
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden"
NO_GOLDEN = "needs the golden checkpoints in ../shared/golden, which is not beside this checkout"


@dataclass
class World:
    """A service on golden checkpoints, and a web server with pictures that it may read from."""

    url: str
    data_dir: Path
    links: str  # base URL of the picture server, on an allowed address
    default_checkpoint: str = "tiny-a"
    controlnet: str | None = None  # the ControlNet that is installed, if this host has ControlNet
    why_no_controlnet: str = "this host has no ControlNet extension"
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def outputs(self) -> Path:
        return self.data_dir / "outputs"

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        with self._client() as client:
            return client.post(path, json=body, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        with self._client() as client:
            return client.get(path, **options)

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers=self.headers, timeout=300, trust_env=False)


def pictures_of(answer: dict[str, Any]) -> list[Path]:
    """The files an EAS answer names; every one of them is there and opens."""
    urls = answer["parameters"]["image_url"]
    assert urls, answer
    paths = [Path(one) for one in urls.split(",")]
    for path in paths:
        with Image.open(path) as image:
            image.load()
    return paths


def png_of(width: int = 96, height: int = 96) -> bytes:
    """A picture with something in it: a gradient with a bright square."""
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    image.paste((230, 60, 30), (width // 4, height // 4, width // 2, height // 2))
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def mask_of(side: int = 96) -> bytes:
    """A white square in the lower right half of a black picture."""
    image = Image.new("L", (side, side), 0)
    image.paste(255, (side // 2, side // 2, side, side))
    held = io.BytesIO()
    image.save(held, "PNG")
    return held.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def picture_server() -> Iterator[str]:
    """Serves ``/boy.png`` and ``/pixabay.jpg`` as the guide's examples name them, and ``/mask.png``."""
    pictures = {"/boy.png": png_of(), "/pixabay.jpg": png_of(), "/mask.png": mask_of()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = pictures.get(self.path)
            if body is not None:
                self.send_response(200)
                self.send_header("Content-Type", "image/png")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            elif self.path == "/to-metadata":
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/latest/meta-data/")
                self.end_headers()
            else:
                self.send_error(404)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
