"""Which addresses a request that somebody else names may go to: this machine itself only where the operator allows its
network, and never what clouds put beside each machine, however it is spelt."""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from ..errors import Invalid

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

PRIVATE: Final = tuple(map(ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
"""Where a company's own receivers stand (RFC 1918, RFC 4193)."""
METADATA: Final = frozenset(
    map(
        ip_address,
        (
            "fd00:ec2::254", "fd00:ec2::23",  # Amazon
            "fd20:ce::254",  # Google
            "fd00:c1::a9fe:a9fe", "192.0.0.192",  # Oracle
            "168.63.129.16",  # Azure
            "100.100.100.200",  # Alibaba
            "fd00:42::42",  # Scaleway
        ),
    )
)  # fmt: skip
"""Where clouds tell a machine its secrets, in the midst of those or of public ones; all others are link-local."""
NAT64: Final = tuple(map(ip_network, ("64:ff9b::/96", "64:ff9b:1::/48")))
"""Whose last 32 bits are the IPv4 address that they lead to (RFC 6052, RFC 8215)."""
COMPATIBLE: Final = ip_network("::/96")
"""The same, written with an IPv4 address at its end (RFC 4291); `::` and `::1` are none of them."""


def read(given: Sequence[str]) -> list[Network]:
    """Networks such as `127.0.0.0/8`. Raises: Invalid."""
    found: list[Network] = []
    for text in given:
        try:
            found.append(ip_network(text))
        except ValueError:
            raise Invalid("{value} is not a network: write one such as 127.0.0.0/8.", value=text) from None
    return found


def allowed(address: Address, more: Sequence[Network] = ()) -> bool:
    """Whether an address is public, private, or in one of these further networks."""
    meant = _meant(address)
    both = (address, meant)
    if any(one.is_link_local or one.is_multicast or one.is_unspecified or one in METADATA for one in both):
        return False
    return meant.is_global or any(one in network for network in (*PRIVATE, *more) for one in both)


def _meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for or leads to; else itself."""
    if isinstance(address, IPv4Address):
        return address
    if any(address in one for one in NAT64) or (address in COMPATIBLE and int(address) > 1):
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def literal(host: str) -> Address | None:
    """The address, where a host is given as one."""
    try:
        return ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return None


async def addresses(host: str, port: int) -> list[Address]:
    """What a name stands for now, in the order in which to try. Raises: OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(one[4][0]).partition("%")[0]) for one in found))
