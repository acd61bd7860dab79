"""Which addresses a request may make this service connect to.

The tables are the IANA IPv4 and IPv6 special-purpose address registries (RFC 6890 and its
updates), written out because `ipaddress.is_global` answers differently between Python versions.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from sd_cloud.errors import InputRefused, InputUnreachable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

_NOT_GLOBAL: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(block), kind)
    for block, kind in (
        ("0.0.0.0/8", "an address of this network"),
        ("10.0.0.0/8", "a private address"),
        ("100.64.0.0/10", "a shared (carrier-grade NAT) address"),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("172.16.0.0/12", "a private address"),
        ("192.0.0.0/24", "an IETF protocol address"),
        ("192.0.2.0/24", "a documentation address"),
        ("192.88.99.0/24", "a retired 6to4 relay address"),
        ("192.168.0.0/16", "a private address"),
        ("198.18.0.0/15", "a benchmarking address"),
        ("198.51.100.0/24", "a documentation address"),
        ("203.0.113.0/24", "a documentation address"),
        ("224.0.0.0/4", "a multicast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "the unspecified address"),
        ("::1/128", "a loopback address"),
        ("::/96", "a retired IPv4-compatible address"),
        ("64:ff9b:1::/48", "a local NAT64 address"),
        ("100::/64", "a discard address"),
        ("2001::/23", "an IETF protocol address"),
        ("2001:db8::/32", "a documentation address"),
        ("3fff::/20", "a documentation address"),
        ("fc00::/7", "a unique local (private) address"),
        ("fe80::/10", "a link-local address"),
        ("fec0::/10", "a retired site-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
_GLOBAL_UNICAST_6 = IPv6Network("2000::/3")

# Answered by the clouds' own metadata and credential services. 168.63.129.16 (Azure) is a global
# address, which is why this list is needed beside the table above.
_METADATA: frozenset[Address] = frozenset(
    ipaddress.ip_address(one)
    for one in (
        "169.254.169.254",
        "100.100.100.200",
        "fd00:ec2::254",
        "fd20:ce::254",
        "168.63.129.16",
        "169.254.170.2",
        "169.254.170.23",
        "fd00:ec2::23",
        "192.0.0.192",
    )
)

_MAPPED = IPv6Network("::ffff:0:0/96")
_NAT64 = IPv6Network("64:ff9b::/96")
_NAT64_LOCAL = IPv6Network("64:ff9b:1::/48")
_SIX_TO_FOUR = IPv6Network("2002::/16")
_TEREDO = IPv6Network("2001::/32")
_ISATAP_INTERFACE_IDS = (0x00005EFE, 0x02005EFE)

# Threads of their own: a name whose servers do not answer holds one for many seconds, and must not
# keep the loop's common threads, in which pictures are saved, from their work.
_RESOLVING = ThreadPoolExecutor(max_workers=16, thread_name_prefix="sd-cloud-resolve")

_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def carried(address: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that traffic to this IPv6 address is really for, by its form.

    IPv4-mapped (RFC 4291), NAT64 (RFC 6052), 6to4 (RFC 3056) and Teredo (RFC 4380: the server,
    then the client). Empty for every other address.
    """
    if isinstance(address, IPv4Address):
        return ()
    bits = int(address)
    if address in _MAPPED or address in _NAT64:
        return (IPv4Address(bits & 0xFFFFFFFF),)
    if address in _SIX_TO_FOUR:
        return (IPv4Address(bits >> 80 & 0xFFFFFFFF),)
    if address in _TEREDO:
        return (IPv4Address(bits >> 64 & 0xFFFFFFFF), IPv4Address(~bits & 0xFFFFFFFF))
    return ()


def _possibly_carried(address: Address) -> Iterator[IPv4Address]:
    """Every IPv4 address that some gateway could read out of this one."""
    yield from carried(address)
    if isinstance(address, IPv4Address):
        return
    bits = int(address)
    if address in _NAT64_LOCAL:  # by RFC 6052 section 2.2 it may sit in any of four places
        yield IPv4Address((bits >> 64 & 0xFFFF) << 16 | bits >> 40 & 0xFFFF)
        yield IPv4Address((bits >> 64 & 0xFF) << 24 | bits >> 32 & 0xFFFFFF)
        yield IPv4Address(bits >> 24 & 0xFFFFFFFF)
        yield IPv4Address(bits & 0xFFFFFFFF)
    if bits >> 32 == 0 or bits >> 32 & 0xFFFFFFFF in _ISATAP_INTERFACE_IDS:
        yield IPv4Address(bits & 0xFFFFFFFF)


def not_global(address: Address) -> str | None:
    """What kind of address this is when it is not globally routable, else None.

    A carrier form (see :func:`carried`) is as global as what it carries.
    """
    for inner in carried(address):
        kind = not_global(inner)
        if kind:
            return f"{kind} ({inner}) in another form"
    if carried(address):
        return None
    for network, kind in _NOT_GLOBAL:
        if address in network:
            return kind
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST_6:
        return "an unallocated address"
    return None


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """The addresses of a name as the operating system orders them (RFC 6724)."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVING, look_up)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def host_key(host: str) -> str:
    """A host name in the one form in which names are compared."""
    return host.lower().rstrip(".")


@dataclass(frozen=True)
class AddressPolicy:
    """The guard in front of every address a request can influence.

    Globally routable addresses are permitted, and beside them what the operator lists: blocks of
    addresses (``networks``) and host names whatever they resolve to (``hosts``). The addresses of
    cloud metadata services are refused even then.
    """

    networks: tuple[Network, ...] = ()
    hosts: frozenset[str] = frozenset()
    resolve: Resolver = system_resolver

    @classmethod
    def listing(cls, entries: Iterable[str], resolve: Resolver = system_resolver) -> AddressPolicy:
        """A policy from ``--image-link-allow`` entries, each a CIDR block, an address or a host.

        Raises ValueError for an entry that is none of them.
        """
        networks: list[Network] = []
        hosts: set[str] = set()
        for entry in entries:
            text = entry.strip()
            if "/" in text or ":" in text or _NUMBER.fullmatch(text.rsplit(".", 1)[-1]):
                networks.append(ipaddress.ip_network(text, strict=False))
            elif re.fullmatch(r"[\w.-]+", text):
                hosts.add(host_key(text.encode("idna").decode("ascii")))
            else:
                raise ValueError(f"{entry!r} is neither a CIDR block nor a host name")
        return cls(tuple(networks), frozenset(hosts), resolve)

    def refusal(self, address: Address, host: str = "") -> str | None:
        """Why this address of ``host`` may not be connected to; None when it may."""
        if isinstance(address, IPv6Address):
            address = IPv6Address(int(address))  # without a zone, which no table knows
        if address in _METADATA or any(one in _METADATA for one in _possibly_carried(address)):
            return "a cloud metadata address, which is never allowed"
        if host_key(host) in self.hosts or self._listed(address):
            return None
        inner = carried(address)
        if inner and all(self._listed(one) or not not_global(one) for one in inner):
            return None
        return not_global(address)

    def _listed(self, address: Address) -> bool:
        return any(address in network for network in self.networks)

    async def choose(self, host: str, port: int, *, field: str) -> str:
        """Resolve a host once and return the first permitted address, to be connected to as it is.

        ``host`` is a name in its ASCII form or an address. Raises InputRefused when no address of
        it is permitted, InputUnreachable when it has none.
        """
        literal = _literal(host, field=field)
        answers = [literal] if literal else await self._resolved(host, port, field=field)
        reason = ""
        for address in answers:
            refused = self.refusal(address, host)
            if refused is None:
                return str(address)
            reason = reason or refused
        what = f"{host} is" if literal else f"{host} resolves to"
        raise InputRefused(
            f"{what} {reason}; only globally routable addresses may be named here, "
            "and those the operator lists with --image-link-allow",
            field=field,
        )

    async def _resolved(self, host: str, port: int, *, field: str) -> list[Address]:
        try:
            answers = await self.resolve(host, port)
        except (OSError, UnicodeError) as error:  # UnicodeError: a label too long for DNS
            raise InputUnreachable(f"{host} cannot be resolved: {error}", field=field) from error
        if not answers:
            raise InputUnreachable(f"{host} has no address", field=field)
        return [ipaddress.ip_address(answer) for answer in answers]


def _literal(host: str, *, field: str) -> Address | None:
    """The address when the host is one, None when it is a name.

    ``2130706433``, ``0x7f.1`` and ``0177.0.0.1`` are addresses to some programs and names to
    others; a host whose last label is a number must be plain dotted decimal (as in the WHATWG URL
    standard's "ends in a number" rule, less its leniency).
    """
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    if _NUMBER.fullmatch(host_key(host).rsplit(".", 1)[-1]):
        raise InputRefused(
            f"{host} is an address in an unusual form; write it as four decimal numbers", field=field
        )
    return None
