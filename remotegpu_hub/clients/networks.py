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
METADATA: Final = ip_address("fd00:ec2::254")
"""Of Amazon, in the midst of those; its IPv4 address and everybody else's are link-local."""


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
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_link_local or address.is_multicast or address.is_unspecified or address == METADATA:
        return False
    return address.is_global or any(address in one for one in (*PRIVATE, *more))


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
