"""The one way out: HTTP to an address that a request names.

The name is resolved once, the address is checked, and the connection goes to exactly that
address while the Host header, the TLS name and the certificate check keep the name. Proxies from
the environment are not used: they would resolve the name again.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import certifi
import httpcore
import httpx

from sd_cloud.errors import InputRefused, InputUnreachable
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.settings import FetchLimits

if TYPE_CHECKING:
    from httpcore import AsyncNetworkBackend, AsyncNetworkStream, Response

try:
    from httpcore import AnyIOBackend as PlainBackend
except ImportError:  # httpcore 0.15, the webui's pin
    from httpcore.backends.asyncio import AsyncIOBackend as PlainBackend  # type: ignore[import-not-found,no-redef]

T = TypeVar("T")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HOST = re.compile(rb"[a-z0-9_.:-]+")
_USER_AGENT = "sd-cloud-api"


@dataclass(frozen=True)
class Answer:
    """What the other side of a POST answered; ``body`` is at most the byte limit."""

    status: int
    body: bytes


class Answering:
    """An answer whose body has not been read yet."""

    def __init__(self, response: Response, host: str) -> None:
        self._response = response
        self._host = host

    async def chunks(self, limit_bytes: int, *, field: str) -> AsyncIterator[bytes]:
        """The body, read no further than the limit. Compression is refused: it hides the size."""
        encoding = _header(self._response, b"content-encoding").lower()
        if encoding not in ("", "identity"):
            raise InputRefused(
                f"{self._host} answers compressed ({encoding}) though asked not to", field=field
            )
        too_large = f"{self._host} sends more than the limit of {limit_bytes} bytes"
        announced = _header(self._response, b"content-length")
        if announced.isdigit() and int(announced) > limit_bytes:
            raise InputRefused(too_large, field=field)
        received_bytes = 0
        async for chunk in self._response.aiter_stream():
            received_bytes += len(chunk)
            if received_bytes > limit_bytes:
                raise InputRefused(too_large, field=field)
            yield chunk


class _PinnedBackend:
    """A network backend that connects to one address, whatever host it is asked for."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._plain = PlainBackend()

    async def connect_tcp(self, host: str, port: int, **options: Any) -> AsyncNetworkStream:
        return await self._plain.connect_tcp(self._address, port, **options)

    async def sleep(self, seconds: float) -> None:
        await self._plain.sleep(seconds)


@lru_cache(maxsize=1)
def trusted_certificates() -> ssl.SSLContext:
    """The system's certificate authorities, and certifi's for images that have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


async def fetch(
    link: str,
    *,
    limits: FetchLimits,
    policy: AddressPolicy,
    field: str,
    certificates: ssl.SSLContext | None = None,
) -> bytes:
    """GET a link, following at most ``limits.redirects`` redirects, each checked as the first.

    Raises InputRefused when the link, its address or its size is not allowed, InputUnreachable
    when the other side fails or all of it takes longer than ``limits.seconds``.
    """

    async def read() -> bytes:
        async with following(
            link, redirects=limits.redirects, policy=policy, field=field, certificates=certificates
        ) as answer:
            return b"".join([chunk async for chunk in answer.chunks(limits.limit_bytes, field=field)])

    return await in_time(read(), link, limits.seconds, field=field)


async def post(
    link: str,
    content: bytes,
    *,
    limits: FetchLimits,
    policy: AddressPolicy,
    field: str,
    headers: Mapping[str, str] | None = None,
    certificates: ssl.SSLContext | None = None,
) -> Answer:
    """POST bytes to a link. A redirect is not followed: its status is the answer.

    Raises as :func:`fetch` does, but an answer of any status is an answer, and of its body no more
    is read than the limit.
    """
    sent = [(name.encode("ascii"), value.encode("utf-8")) for name, value in (headers or {}).items()]

    async def send() -> Answer:
        url = _checked_url(link, field=field)
        async with _exchange(
            "POST", url, policy, field=field, certificates=certificates, headers=sent, content=content
        ) as response:
            body = bytearray()
            async for chunk in response.aiter_stream():
                body += chunk
                if len(body) >= limits.limit_bytes:
                    break
        return Answer(response.status, bytes(body[: limits.limit_bytes]))

    return await in_time(send(), link, limits.seconds, field=field)


async def check_address(link: str, *, policy: AddressPolicy, field: str) -> None:
    """Raises InputRefused for a link whose address is not allowed, InputUnreachable for none."""
    url = _checked_url(link, field=field)
    await policy.choose(url.raw_host.decode("ascii"), url.port or 443, field=field)


async def in_time(work: Coroutine[Any, Any, T], link: str, seconds: float, *, field: str) -> T:
    """Wait for work on a link; InputUnreachable when it takes longer than ``seconds`` in all."""
    try:
        return await asyncio.wait_for(work, seconds)
    except asyncio.TimeoutError as error:
        raise InputUnreachable(
            f"{_host_of(link)} took longer than {seconds:g} seconds", field=field
        ) from error


@asynccontextmanager
async def following(
    link: str,
    *,
    redirects: int,
    policy: AddressPolicy,
    field: str,
    certificates: ssl.SSLContext | None = None,
) -> AsyncIterator[Answering]:
    """GET a link, follow at most so many redirects, each checked, and give the answer to be read.

    Raises as :func:`fetch` does, but knows no time limit: see :func:`in_time`.
    """
    url = _checked_url(link, field=field)
    for _ in range(redirects + 1):
        async with _exchange("GET", url, policy, field=field, certificates=certificates) as response:
            if response.status not in _REDIRECTS:
                if not 200 <= response.status < 300:
                    raise InputUnreachable(f"{url.host} answered {response.status}", field=field)
                yield Answering(response, url.host)
                return
            url = _next_url(url, response, field=field)
    raise InputRefused(f"more than {redirects} redirects", field=field)


def _host_of(link: str) -> str:
    """The host for an error message: a link's path and query may hold somebody's secret."""
    try:
        return httpx.URL(link).host
    except httpx.InvalidURL:
        return "the link"


def _checked_url(link: str, *, field: str) -> httpx.URL:
    try:
        url = httpx.URL(link)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputRefused(f"not a link: {error}", field=field) from error
    if url.scheme not in ("http", "https"):
        raise InputRefused(f"only http and https links are fetched, not {url.scheme or 'none'}:", field=field)
    if url.userinfo:
        raise InputRefused("a link with a user name or password in it is not fetched", field=field)
    if not _HOST.fullmatch(url.raw_host):
        raise InputRefused(f"the link names no host that could be reached ({url.host!r})", field=field)
    if url.port is not None and not 0 < url.port < 65536:
        raise InputRefused(f"{url.port} is not a port", field=field)
    return url


def _next_url(url: httpx.URL, response: Response, *, field: str) -> httpx.URL:
    location = _header(response, b"location")
    if not location:
        raise InputUnreachable(f"{url.host} answered {response.status} without saying where to", field=field)
    try:
        joined = url.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise InputRefused(f"redirected to what is not a link: {error}", field=field) from error
    return _checked_url(str(joined), field=field)


@asynccontextmanager
async def _exchange(
    method: str,
    url: httpx.URL,
    policy: AddressPolicy,
    *,
    field: str,
    certificates: ssl.SSLContext | None,
    headers: Iterable[tuple[bytes, bytes]] = (),
    content: bytes | None = None,
) -> AsyncIterator[Response]:
    """One request over one connection of its own to one checked address."""
    host = url.raw_host.decode("ascii")
    port = url.port or (443 if url.scheme == "https" else 80)
    address = await policy.choose(host, port, field=field)
    pool = httpcore.AsyncConnectionPool(
        ssl_context=certificates or trusted_certificates(),
        max_keepalive_connections=0,
        network_backend=cast("AsyncNetworkBackend", _PinnedBackend(address)),
    )
    sent = [
        (b"Host", url.netloc),
        (b"User-Agent", _USER_AGENT.encode()),
        (b"Accept", b"*/*"),
        (b"Accept-Encoding", b"identity"),
        *headers,
    ]
    if content is not None:
        sent.append((b"Content-Length", str(len(content)).encode()))
    # The name that TLS asks for and checks has no closing dot, whatever the link says.
    target = httpcore.URL(
        scheme=url.raw_scheme, host=host.rstrip(".").encode(), port=url.port, target=url.raw_path
    )
    try:
        async with pool, pool.stream(method, target, headers=sent, content=content) as response:
            yield response
    except (httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError) as error:
        reason = str(error) or type(error).__name__
        raise InputUnreachable(f"{url.host} could not be reached: {reason}", field=field) from error


def _header(response: Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")
