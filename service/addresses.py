"""Addresses that settings name: origins of web pages, networks of proxies, the server's own.

The settings read them at the start, so that a wrong one ends it; `service.http` goes by them.
"""

import re
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from urllib.parse import urlsplit

EVERY_ORIGIN = "*"
EVERYBODY = "*"

# Parts of an address as HTTP's headers hold them.
SCHEMES = ("http", "https")
HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
PREFIX = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+;=:@%-]+)+")
_ORIGIN = re.compile(r"(https?)://([a-z0-9._-]+|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def origins(text: str) -> frozenset[str]:
    """Read origins with commas between them, as browsers write them.

    Raises:
        ValueError: one is none; the message quotes it.
    """
    return frozenset(_origin(part.strip()) for part in text.split(",") if part.strip())


def _origin(text: str) -> str:
    match = _ORIGIN.fullmatch(text.lower().removesuffix("/"))
    if text == EVERY_ORIGIN:
        return text
    if not match or int(match[3] or 0) > 65535:
        raise ValueError(text)
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" + ("" if port in (None, _DEFAULT_PORTS[scheme]) else f":{port}")


@lru_cache(maxsize=8)
def networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Read addresses and networks with commas between them; raises ValueError naming a wrong one.

    `*`, which stands for every address, gives none: see `service.http.public_address.is_trusted`.
    """
    parts = [part.strip() for part in text.split(",")]
    return tuple(ip_network(part) for part in parts if part not in ("", EVERYBODY))


def check_public_url(url: str) -> str:
    """Return an address without its last slash; raises ValueError for what is none."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    host = HOST.fullmatch(parts.netloc)
    parts.port  # noqa: B018  # raises ValueError above 65535
    if parts.scheme not in SCHEMES or not host or parts.query or parts.fragment:
        raise ValueError
    if path and not PREFIX.fullmatch(path):
        raise ValueError
    return f"{parts.scheme}://{parts.netloc}{path}"
