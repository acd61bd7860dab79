"""nginx in front of a service, below a path, as an operator sets it up."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.serving import wait_until_ready

NGINX = shutil.which("nginx", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin")))
NO_NGINX = "there is no nginx (Debian's package nginx)"
STOP_SECONDS = 20

CONFIG = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" close; }}
    server {{
        listen 127.0.0.1:{port};
        location /{subpath}/ {{
            proxy_pass {url}/;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header Authorization "{token}";
        }}
    }}
}}
"""


@contextmanager
def behind_nginx(url: str, folder: Path, *, port: int, subpath: str, token: str) -> Iterator[str]:
    """The address that people use: ``url`` below ``subpath``, each request with the service's token."""
    folder.mkdir()
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, url=url, port=port, subpath=subpath, token=token))
    log = folder / "error.log"
    command = [NGINX or "nginx", "-e", str(log), "-p", str(folder), "-c", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)  # what matters is in its log
    public = f"http://127.0.0.1:{port}/{subpath}"
    try:
        wait_until_ready(f"{public}/healthz", process, log)
        yield public
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)
