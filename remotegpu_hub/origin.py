"""Where a request came from, as the proxies on its way tell: each adds the address that it saw at the end of
`X-Forwarded-For`. What stands before the first address that is no proxy of ours, anybody could have written, and so is
`X-Real-Ip`, which no proxy of a hub sets. Knows no handler."""

from collections.abc import Collection
from ipaddress import ip_address


def address_of(peer: str, forwarded: str, *, proxies: Collection[str] = (), behind_proxy: bool = False) -> str:
    """Who sent a request that came from `peer`. Only the proxy of the hub speaks to our services on this machine, so a
    loopback peer is one; `proxies` are further ones, and `behind_proxy` says that the peer is one in any case.

    It takes what Node.js writes of IPv4 on a socket for both (`::ffff:192.0.2.1`) as IPv4.
    """
    found = _plain(peer) or peer
    hops = [one.strip() for one in forwarded.split(",")]
    believed = behind_proxy or found in proxies or _is_loopback(found)
    while believed and hops:
        hop = _plain(hops.pop())
        if hop is None:
            break
        found = hop
        believed = found in proxies
    return found


def _plain(text: str) -> str | None:
    try:
        found = ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return str(mapped or found)


def _is_loopback(text: str) -> bool:
    plain = _plain(text)
    return plain is not None and ip_address(plain).is_loopback
