"""An OSS of one process: it keeps objects, checks each signature with oss2's own signer, and can fail."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

import oss2
from oss2.http import Request
from requests.structures import CaseInsensitiveDict

KEY_ID, KEY_SECRET = "test-id", "test-secret"


@dataclass
class FakeOss:
    """``fail_from``: PUTs from this one on (counted from 1) are answered with 503; 0: none is."""

    endpoint: str = ""
    objects: dict[str, bytes] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    puts: int = 0
    fail_from: int = 0
    cut_bodies: bool = False
    refused: list[str] = field(default_factory=list)


def signed(
    method: str, bucket: str, key: str, headers: CaseInsensitiveDict[str], query: dict[str, str]
) -> str:
    """The signature that the owner of the secret would have made for this request."""
    request = Request(method, "http://unused", params=dict(query), headers=CaseInsensitiveDict(headers))
    auth = oss2.Auth(KEY_ID, KEY_SECRET)
    sign = auth._ProviderAuth__make_signature
    return str(sign(request, bucket, key, auth.credentials_provider.get_credentials()))


def verified(method: str, path: str, headers: CaseInsensitiveDict[str]) -> bool:
    """Whether the Authorization header, or the signature in the query, is that of the secret."""
    split = urlsplit(path)
    bucket, _, key = unquote(split.path).lstrip("/").partition("/")
    query = dict(parse_qsl(split.query))
    if "Signature" in query:
        given = query.pop("Signature")
        if query.pop("OSSAccessKeyId", None) != KEY_ID:
            return False
        plain = CaseInsensitiveDict({"date": query.pop("Expires")})
        return given == signed(method, bucket, key, plain, query)
    return headers.get("authorization") == f"OSS {KEY_ID}:{signed(method, bucket, key, headers, query)}"


@contextmanager
def serving_oss() -> Iterator[FakeOss]:
    fake = FakeOss()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", content_type: str = "application/xml") -> None:
            self.send_response(status)
            self.send_header("x-oss-request-id", "0")
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fake.cut_bodies else body)

        def error(self, status: int, code: str, message: str) -> None:
            self.answer(status, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())

        def checked(self) -> str | None:
            headers = CaseInsensitiveDict(self.headers.items())
            if not verified(self.command, self.path, headers):
                fake.refused.append(self.path)
                self.error(403, "SignatureDoesNotMatch", "the signature is not that of the secret")
                return None
            return unquote(urlsplit(self.path).path).lstrip("/")

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            name = self.checked()
            if name is None:
                return
            fake.puts += 1
            if fake.fail_from and fake.puts >= fake.fail_from:
                self.error(503, "ServiceUnavailable", "try again later")
                return
            fake.objects[name] = body
            fake.types[name] = self.headers.get("Content-Type", "")
            self.answer(200)

        def do_GET(self) -> None:
            name = self.checked()
            if name is None:
                return
            if name not in fake.objects:
                self.error(404, "NoSuchKey", "the object is not there")
                return
            self.answer(200, fake.objects[name], fake.types.get(name, "image/png"))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    fake.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
