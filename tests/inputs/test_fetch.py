"""The guarded fetcher against servers that mean no good."""

from __future__ import annotations

import asyncio
import gzip
import ssl
from collections.abc import Sequence
from dataclasses import replace

import pytest
import trustme

from sd_cloud.errors import InputRefused, InputUnreachable
from sd_cloud.inputs.address import AddressPolicy
from sd_cloud.inputs.fetch import fetch, post
from sd_cloud.settings import FetchLimits
from tests.inputs.servers import Conversation, serving

LIMITS = FetchLimits(limit_bytes=1000, seconds=10.0)
BODY = b"\x89PNG and more"


class Names:
    """A resolver that gives each name's answers in turn, and counts how often it is asked."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(turns) for name, turns in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        turns = self.answers[host]
        return turns.pop(0) if len(turns) > 1 else turns[0]


def loopback(names: Names | None = None) -> AddressPolicy:
    """A policy under which the servers of these tests may be reached."""
    names = names or Names(pictures_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    return AddressPolicy.listing(["127.0.0.1"], resolve=names)


async def get(link: str, policy: AddressPolicy | None = None, limits: FetchLimits = LIMITS) -> bytes:
    return await fetch(link, limits=limits, policy=policy or loopback(), field="image_link")


async def with_body(conversation: Conversation) -> None:
    await conversation.answer(body=BODY)


def redirecting(to: str, status: int = 302) -> object:
    async def script(conversation: Conversation) -> None:
        await conversation.answer(status, Location=to)

    return script


async def test_the_bytes_come_back_and_the_host_header_keeps_the_name() -> None:
    async with serving(with_body) as server:
        assert await get(server.url(path="/a%20b.png?sign=x%2By")) == BODY
        assert server.seen[0].headers["host"] == f"pictures.test:{server.port}"
        assert server.seen[0].path == "/a%20b.png?sign=x%2By"


async def test_the_name_is_resolved_once_and_that_address_is_connected_to() -> None:
    """DNS rebinding: the second answer would be another machine."""
    names = Names(pictures_test=[["127.0.0.1"], ["127.0.0.2"]])

    async def elsewhere(conversation: Conversation) -> None:
        await conversation.answer(body=b"the wrong machine")

    async with serving(with_body) as server, serving(elsewhere, "127.0.0.2", server.port):
        assert await get(server.url(), loopback(names)) == BODY
    assert names.asked == ["pictures.test"]


async def test_a_refused_address_is_never_connected_to() -> None:
    async with serving(with_body) as server:
        with pytest.raises(InputRefused, match=r"^image_link: 127\.0\.0\.1 is a loopback address"):
            await get(server.url("127.0.0.1"), AddressPolicy())
        with pytest.raises(InputRefused, match=r"localhost resolves to a loopback address"):
            await get(server.url("localhost"), AddressPolicy())
        assert server.seen == []


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "2130706433",
        "0x7f.1",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "0.0.0.0",
        "[::]",
        "127.0.0.1.",
        "169.254.169.254",
        "100.100.100.200",
        "[fd00:ec2::254]",
        "１２７.0.0.1",
        "127。0。0。1",
        "①②⑦.0.0.1",
        "[fe80::1%25lo]",
        "a..b",
        "",
    ],
)
async def test_no_spelling_of_an_inner_address_gets_through(host: str) -> None:
    async with serving(with_body) as server:
        with pytest.raises((InputRefused, InputUnreachable)) as caught:
            await get(server.url(host), AddressPolicy())
        assert caught.value.field == "image_link"
        assert server.seen == []


async def test_an_international_name_is_resolved_in_its_ascii_form() -> None:
    names = Names(**{"xn--bcher-kva_test": [["127.0.0.1"]]})
    async with serving(with_body) as server:
        assert await get(server.url("bücher.test"), loopback(names)) == BODY
        assert server.seen[0].headers["host"] == f"xn--bcher-kva.test:{server.port}"


@pytest.mark.parametrize(
    "link",
    [
        "file:///etc/passwd",
        "ftp://pictures.test/a.png",
        "gopher://pictures.test/",
        "//pictures.test/a.png",
        "pictures.test/a.png",
        "http://",
        "http:///a.png",
        "http://user:secret@pictures.test/a.png",
        "http://user@pictures.test/a.png",
        "http://pictures.test:99999/",
        "http://pictures.test\x00/",
        "http://[::1/",
        "",
    ],
)
async def test_a_link_that_is_not_plain_http_is_refused(link: str) -> None:
    with pytest.raises(InputRefused) as caught:
        await get(link)
    assert caught.value.field == "image_link"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(status: int) -> None:
    async def script(conversation: Conversation) -> None:
        if conversation.path == "/a.png":
            await conversation.answer(status, Location="/moved.png")
        else:
            await conversation.answer(body=BODY)

    async with serving(script) as server:
        assert await get(server.url()) == BODY


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://10.0.0.1/",
        "//192.168.0.1/x",
        "file:///etc/passwd",
        "http://user:pw@pictures.test/",
        "http://0x7f.1/",
        "http://[bad",
    ],
)
async def test_a_redirect_is_checked_as_the_first_link_was(target: str) -> None:
    async with serving(redirecting(target)) as server:  # type: ignore[arg-type]
        with pytest.raises(InputRefused):
            await get(server.url())
        assert len(server.seen) == 1


async def test_the_name_of_a_redirect_is_resolved_and_checked_again() -> None:
    names = Names(pictures_test=[["127.0.0.1"], ["10.0.0.1"]])
    async with serving(redirecting("/again.png")) as server:  # type: ignore[arg-type]
        with pytest.raises(InputRefused, match="private address"):
            await get(server.url(), loopback(names))
        assert names.asked == ["pictures.test", "pictures.test"]
        assert len(server.seen) == 1


@pytest.mark.parametrize(("hops", "arrives"), [(5, True), (6, False)])
async def test_at_most_five_redirects_are_followed(hops: int, arrives: bool) -> None:
    async def script(conversation: Conversation) -> None:
        done = int(conversation.path.strip("/"))
        if done == hops:
            await conversation.answer(body=BODY)
        else:
            await conversation.answer(302, Location=f"/{done + 1}")

    async with serving(script) as server:
        if arrives:
            assert await get(server.url(path="/0")) == BODY
        else:
            with pytest.raises(InputRefused, match="more than 5 redirects"):
                await get(server.url(path="/0"))
            assert len(server.seen) == 6


async def test_a_redirect_to_nowhere_is_unreachable() -> None:
    async with serving(lambda conversation: conversation.answer(302)) as server:
        with pytest.raises(InputUnreachable, match="without saying where"):
            await get(server.url())


@pytest.mark.parametrize("status", [204, 400, 403, 404, 500, 503])
async def test_an_answer_that_is_not_a_success_is_unreachable(status: int) -> None:
    async with serving(lambda conversation: conversation.answer(status)) as server:
        if status == 204:
            assert await get(server.url()) == b""
        else:
            with pytest.raises(InputUnreachable, match=f"pictures.test answered {status}"):
                await get(server.url())


async def test_a_size_announced_above_the_limit_is_refused_before_the_body() -> None:
    async def script(conversation: Conversation) -> None:
        await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n")
        await asyncio.Event().wait()

    async with serving(script) as server:
        with pytest.raises(InputRefused, match="limit of 1000 bytes"):
            await get(server.url())


async def test_an_endless_body_is_dropped_at_the_limit() -> None:
    sent = 0

    async def script(conversation: Conversation) -> None:
        nonlocal sent
        await conversation.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            await conversation.send(b"2710\r\n" + b"x" * 10000 + b"\r\n")
            sent += 10000

    async with serving(script) as server:
        with pytest.raises(InputRefused, match="limit of 1000 bytes"):
            await get(server.url())
    assert sent < 20_000_000


async def test_a_body_of_exactly_the_limit_is_taken() -> None:
    async with serving(lambda conversation: conversation.answer(body=b"x" * 1000)) as server:
        assert len(await get(server.url())) == 1000


async def test_a_compressed_answer_is_refused_since_its_size_is_not_known() -> None:
    bomb = gzip.compress(b"\0" * 500_000)
    async with serving(
        lambda conversation: conversation.answer(body=bomb, Content_Encoding="gzip")
    ) as server:
        with pytest.raises(InputRefused, match="compressed"):
            await get(server.url())
        assert server.seen[0].headers["accept-encoding"] == "identity"


async def test_the_time_limit_is_for_all_of_it_not_for_each_read() -> None:
    async def drip(conversation: Conversation) -> None:
        await conversation.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n")
        for _ in range(900):
            await conversation.send(b"x")
            await asyncio.sleep(0.02)

    async with serving(drip) as server:
        with pytest.raises(InputUnreachable, match=r"pictures.test took longer than 0\.3 seconds"):
            await get(server.url(), limits=replace(LIMITS, seconds=0.3))


async def test_redirects_share_one_time_limit() -> None:
    async def slow(conversation: Conversation) -> None:
        await asyncio.sleep(0.2)
        await conversation.answer(302, Location="/next")

    async with serving(slow) as server:
        with pytest.raises(InputUnreachable, match="took longer"):
            await get(server.url(), limits=replace(LIMITS, seconds=0.5))
        assert len(server.seen) <= 3


async def test_a_resolver_that_hangs_counts_against_the_time_limit() -> None:
    async def hangs(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(InputUnreachable, match="took longer"):
        await get("http://pictures.test/", AddressPolicy(resolve=hangs), replace(LIMITS, seconds=0.1))


@pytest.mark.parametrize(
    "raw", [b"", b"no http at all\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nshort"]
)
async def test_a_broken_answer_is_unreachable(raw: bytes) -> None:
    async with serving(lambda conversation: conversation.send(raw)) as server:
        with pytest.raises(InputUnreachable, match=r"pictures\.test could not be reached"):
            await get(server.url(path="/?secret=1"))


async def test_nobody_listening_is_unreachable() -> None:
    async with serving(with_body) as server:
        pass
    with pytest.raises(InputUnreachable) as caught:
        await get(server.url(path="/?signature=secret"))
    assert "secret" not in str(caught.value)


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with serving(with_body) as server:
        assert await get(server.url()) == BODY


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def tls_server(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.mark.parametrize("host", ["pictures.test", "pictures.test."])
async def test_tls_asks_for_and_checks_the_name_though_an_address_is_connected(
    authority: trustme.CA, host: str
) -> None:
    asked: list[str | None] = []
    tls = tls_server(authority, "pictures.test")
    tls.sni_callback = lambda sock, name, context: asked.append(name)  # type: ignore[misc,assignment]
    names = Names(**{host.replace(".", "_"): [["127.0.0.1"]]})
    async with serving(with_body, tls=tls) as server:
        link = server.url(host, scheme="https")
        taken = await fetch(
            link, limits=LIMITS, policy=loopback(names), field="link", certificates=trusting(authority)
        )
        assert taken == BODY
    assert asked == ["pictures.test"]


async def test_a_certificate_for_another_name_is_unreachable(authority: trustme.CA) -> None:
    async with serving(with_body, tls=tls_server(authority, "other.test")) as server:
        link = server.url(scheme="https")
        with pytest.raises(InputUnreachable, match="could not be reached"):
            await fetch(
                link, limits=LIMITS, policy=loopback(), field="link", certificates=trusting(authority)
            )
        assert server.seen == []


async def test_a_certificate_nobody_vouches_for_is_unreachable(authority: trustme.CA) -> None:
    async with serving(with_body, tls=tls_server(authority, "pictures.test")) as server:
        with pytest.raises(InputUnreachable):
            await get(server.url(scheme="https"))


async def test_a_redirect_to_another_name_at_the_same_address_has_its_certificate_checked(
    authority: trustme.CA,
) -> None:
    async with serving(
        lambda conversation: conversation.answer(302, Location=f"https://other.test:{server.port}/"),
        tls=tls_server(authority, "pictures.test"),
    ) as server:
        with pytest.raises(InputUnreachable, match=r"other\.test could not be reached"):
            await fetch(
                server.url(scheme="https"),
                limits=LIMITS,
                policy=loopback(),
                field="link",
                certificates=trusting(authority),
            )


async def test_a_post_carries_its_body_and_headers_and_any_status_is_an_answer() -> None:
    async with serving(lambda conversation: conversation.answer(410, b"gone")) as server:
        answer = await post(
            server.url(),
            b'{"a": 1}',
            limits=LIMITS,
            policy=loopback(),
            field="callback_url",
            headers={"Content-Type": "application/json", "X-Signature": "abc"},
        )
        assert (answer.status, answer.body) == (410, b"gone")
        said = server.seen[0]
        assert said.line.startswith("POST ") and said.body == b'{"a": 1}'
        assert said.headers["content-type"] == "application/json" and said.headers["x-signature"] == "abc"


async def test_a_post_follows_no_redirect_and_passes_the_same_guard() -> None:
    async with serving(redirecting("/elsewhere", 307)) as server:  # type: ignore[arg-type]
        answer = await post(server.url(), b"x", limits=LIMITS, policy=loopback(), field="callback_url")
        assert answer.status == 307 and len(server.seen) == 1
    with pytest.raises(InputRefused, match=r"^callback_url: "):
        await post("http://10.0.0.1/", b"x", limits=LIMITS, policy=AddressPolicy(), field="callback_url")
