"""The address of a request is what our own proxies saw, whatever its sender wrote."""

import pytest

from remotegpu_hub.origin import address_of

PROXIES = ("10.0.0.7",)


@pytest.mark.parametrize(
    ("peer", "forwarded", "found"),
    [
        ("127.0.0.1", "192.0.2.1", "192.0.2.1"),
        ("::1", "192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "::ffff:192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("127.0.0.1", "198.51.100.9, 192.0.2.1", "192.0.2.1"),
        ("127.0.0.1", "198.51.100.9,127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.9, 192.0.2.1, 10.0.0.7", "192.0.2.1"),
        ("10.0.0.7", "192.0.2.1", "192.0.2.1"),
        ("192.0.2.1", "198.51.100.9", "192.0.2.1"),
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "198.51.100.9, <script>", "127.0.0.1"),
        ("127.0.0.1", "10.0.0.7", "10.0.0.7"),
    ],
    ids=["IPv4", "IPv6 loopback", "mapped", "IPv6", "forged first hop", "forged on this machine", "another proxy",
         "a proxy elsewhere", "no proxy", "nothing said", "no address", "only proxies"],
)  # fmt: skip
def test_an_address_is_the_last_one_that_a_proxy_of_ours_saw(peer: str, forwarded: str, found: str):
    assert address_of(peer, forwarded, proxies=PROXIES) == found


def test_the_hubs_own_port_is_behind_its_proxy_wherever_that_is():
    assert address_of("10.9.9.9", "198.51.100.9, 192.0.2.1", behind_proxy=True) == "192.0.2.1"
