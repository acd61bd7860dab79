"""The table of addresses: what may be connected to, in every form an address can be written."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sd_cloud.errors import InputRefused, InputUnreachable
from sd_cloud.inputs.address import AddressPolicy, carried, not_global

PERMITTED = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "100.128.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "198.20.0.0",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2400:3200::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
    "2002:808:808::1",
    "2001:0:808:808:0:0:fefe:fefe",  # Teredo: server 8.8.8.8, client 1.1.1.1
]

REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::8.8.8.8",
    "::127.0.0.1",
    "::ffff:0:8.8.8.8",
    "64:ff9b:1::8.8.8.8",
    "64:ff9b:1:7f00:0:100::",
    "100::1",
    "2001:1::1",
    "2001:20::1",
    "2001:db8::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd12:3456::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]

METADATA = [
    "169.254.169.254",
    "100.100.100.200",
    "fd00:ec2::254",
    "168.63.129.16",
    "::ffff:169.254.169.254",
    "::ffff:100.100.100.200",
    "::169.254.169.254",
    "64:ff9b::169.254.169.254",
    "2002:a9fe:a9fe::1",
    "2002:6464:64c8::",
    "2001:0:a9fe:a9fe::",  # Teredo with the metadata address as its server
    "2001:0:808:808:0:0:5601:5601",  # and as its client, inverted
    "64:ff9b:1::169.254.169.254",
    "64:ff9b:1:a9fe:a9:fe00::",
    "64:ff9b:1:a9:fe:a9fe::",
    "64:ff9b:1:0:a9:fea9:fe00:0",
    "2606:4700::5efe:169.254.169.254",
    "2606:4700::200:5efe:169.254.169.254",
]


def policy(*allow: str, **answers: Sequence[str]) -> AddressPolicy:
    async def resolve(host: str, port: int) -> Sequence[str]:
        if host.rstrip(".") not in names:
            raise OSError("no such name")
        return names[host.rstrip(".")]

    names = {name.replace("_", "."): found for name, found in answers.items()}
    return AddressPolicy.listing(allow, resolve=resolve)


@pytest.mark.parametrize("text", PERMITTED)
def test_a_globally_routable_address_is_permitted(text: str) -> None:
    assert AddressPolicy().refusal(ipaddress.ip_address(text)) is None


@pytest.mark.parametrize("text", REFUSED)
def test_an_address_that_is_not_globally_routable_is_refused(text: str) -> None:
    assert AddressPolicy().refusal(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", [text for text in REFUSED if ":" not in text])
def test_an_ipv4_address_is_refused_in_each_form_that_carries_it(text: str) -> None:
    address = ipaddress.IPv4Address(text)
    bits = int(address)
    forms = [
        ipaddress.IPv6Address(0xFFFF << 32 | bits),
        ipaddress.IPv6Address(0x0064FF9B << 96 | bits),
        ipaddress.IPv6Address(0x2002 << 112 | bits << 80),
        ipaddress.IPv6Address(0x20010000 << 96 | bits << 64 | 0xF7F7F7F7),
        ipaddress.IPv6Address(0x20010000 << 96 | 0x08080808 << 64 | bits ^ 0xFFFFFFFF),
    ]
    for form in forms:
        assert address in carried(form)
        assert AddressPolicy().refusal(form)


@pytest.mark.parametrize("text", REFUSED)
def test_what_the_operator_lists_is_permitted(text: str) -> None:
    address = ipaddress.ip_address(text.partition("%")[0])
    assert AddressPolicy.listing([f"{address}/{address.max_prefixlen}"]).refusal(address) is None


@pytest.mark.parametrize("text", METADATA)
@pytest.mark.parametrize("allow", [(), ("0.0.0.0/0", "::/0"), ("metadata.internal",)])
def test_a_metadata_address_is_refused_whatever_the_operator_lists(text: str, allow: tuple[str, ...]) -> None:
    reason = AddressPolicy.listing(allow).refusal(ipaddress.ip_address(text), "metadata.internal")
    assert reason is not None and "metadata" in reason


def test_a_metadata_address_listed_by_itself_is_still_refused() -> None:
    listing = AddressPolicy.listing(["169.254.169.254", "100.100.100.200/32", "fd00:ec2::254/128"])
    for text in ("169.254.169.254", "100.100.100.200", "fd00:ec2::254"):
        assert listing.refusal(ipaddress.ip_address(text))


def test_listing_a_private_block_permits_it_in_its_carried_forms_too() -> None:
    listing = AddressPolicy.listing(["10.0.0.0/8"])
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::10.1.2.3", "2002:0a01:0203::1"):
        assert listing.refusal(ipaddress.ip_address(text)) is None
    assert listing.refusal(ipaddress.ip_address("2001:0:0a01:203::"))  # a Teredo client of 255.255.255.255


@given(st.integers(0, 2**32 - 1))
def test_a_mapped_address_is_as_global_as_the_address_it_maps(bits: int) -> None:
    plain, mapped = ipaddress.IPv4Address(bits), ipaddress.IPv6Address(0xFFFF << 32 | bits)
    assert (AddressPolicy().refusal(plain) is None) == (AddressPolicy().refusal(mapped) is None)


@given(st.one_of(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address), st.ip_addresses(v=6)))
def test_nothing_that_python_calls_private_or_special_is_global(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if carried(address):
        return
    if address.is_private or address.is_loopback or address.is_link_local or address.is_multicast:
        assert not_global(address)
    if address.is_reserved or address.is_unspecified:
        assert not_global(address)


async def test_an_address_written_plainly_needs_no_resolver() -> None:
    assert await policy().choose("8.8.8.8", 80, field="link") == "8.8.8.8"
    assert await policy().choose("2606:4700:4700::1111", 80, field="link") == "2606:4700:4700::1111"


@pytest.mark.parametrize(
    "host",
    ["2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "127.1", "127.0.0.01", "1.2.3.4.", "0x", "a.0x1"],
)
async def test_an_address_in_an_unusual_form_is_refused(host: str) -> None:
    with pytest.raises(InputRefused, match=r"^link: .* unusual form"):
        await policy("0.0.0.0/0").choose(host, 80, field="link")


async def test_the_first_permitted_answer_is_chosen() -> None:
    guard = policy(mixed_test=["10.0.0.1", "fd00::1", "8.8.8.8", "1.1.1.1"])
    assert await guard.choose("mixed.test", 80, field="link") == "8.8.8.8"


async def test_a_name_with_no_permitted_answer_is_refused_with_the_field_and_the_rule() -> None:
    guard = policy(inside_test=["10.0.0.1"])
    with pytest.raises(InputRefused) as caught:
        await guard.choose("inside.test", 80, field="image_link")
    assert caught.value.field == "image_link"
    assert "private address" in str(caught.value) and "--image-link-allow" in str(caught.value)
    assert "10.0.0.1" not in str(caught.value), "what a name resolves to inside is not for the caller"


@pytest.mark.parametrize("host", ["inside.test", "INSIDE.test", "inside.test."])
async def test_a_listed_host_is_permitted_whatever_its_case_or_closing_dot(host: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ["10.0.0.1"]

    guard = AddressPolicy.listing(["Inside.Test"], resolve=resolve)
    assert await guard.choose(host, 80, field="link") == "10.0.0.1"
    with pytest.raises(InputRefused):
        await guard.choose("other.test", 80, field="link")


async def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    with pytest.raises(InputUnreachable, match=r"nowhere\.test cannot be resolved"):
        await policy().choose("nowhere.test", 80, field="link")
    with pytest.raises(InputUnreachable, match="has no address"):
        await policy(empty_test=[]).choose("empty.test", 80, field="link")


async def test_a_name_that_no_resolver_takes_is_unreachable() -> None:
    with pytest.raises(InputUnreachable):
        await AddressPolicy().choose("a" * 64 + ".test", 80, field="link")


@pytest.mark.parametrize("entry", ["10.0.0.0/33", "1.2.3", "http://host", "host:80", "a b", "::/200", ""])
def test_a_listing_that_is_neither_block_nor_host_is_an_error(entry: str) -> None:
    with pytest.raises(ValueError):
        AddressPolicy.listing([entry])
