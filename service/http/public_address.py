"""The address under which clients reach this server, behind whatever proxies.

It goes into what answers hold (addresses of images, the OpenAPI document) and decides nothing:
who may come in and what is drawn never depend on it.
"""

import re
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import Scope

from service.addresses import EVERYBODY, HOST, PREFIX, SCHEMES, networks

# One parameter of a Forwarded header: a name, and a token or a quoted text.
# Without the blanks around it, which are separators like any: a pattern that takes them, tried at
# each of many, would take a time that grows with the square of their number.
_PARAMETER = re.compile(r"([A-Za-z0-9_-]+)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s;,\"]+))")
_SEPARATORS = ";, \t"


def is_trusted(peer: str, trusted: str) -> bool:
    """Whether the headers of a proxy at the address `peer` are believed."""
    if EVERYBODY in (part.strip() for part in trusted.split(",")):
        return True
    try:
        address = ip_address(peer)
    except ValueError:  # no address: the peer of a socket that has none
        return False
    # IPv4 over a socket for both kinds: ::ffff:10.0.0.1.
    address = getattr(address, "ipv4_mapped", None) or address
    return any(address in network for network in networks(trusted))


def public_address(scope: Scope, public_url: str | None, trusted: str) -> str:
    """The server's address as the client of a request knows it, without a slash at its end.

    A proxy that is trusted says it by `Forwarded` (RFC 7239), or by `X-Forwarded-Proto`, `-Host`
    and `-Prefix`; of a list, which grows with each proxy, the first is the one that the client
    spoke to. Prefixes add up, for each proxy has taken its own away. What makes no sense is passed
    over, for the next best source.

    Args:
        scope: of the request (ASGI).
        public_url: the address, where the operator has said it, as
            `service.addresses.check_public_url` returns it.
        trusted: addresses and networks of proxies (see `service.addresses.networks`).
    """
    if public_url is not None:
        return public_url
    headers = Headers(scope=scope)
    schemes, hosts, prefix = [scope["scheme"]], [headers.get("host", "")], ""
    if is_trusted((scope.get("client") or ("",))[0], trusted):
        standard = _forwarded(", ".join(headers.getlist("forwarded")))
        schemes = [standard.get("proto", ""), _first(headers, "proto"), *schemes]
        hosts = [standard.get("host", ""), _first(headers, "host"), *hosts]
        prefix = _prefix(headers)
    scheme = next(candidate.lower() for candidate in schemes if candidate.lower() in SCHEMES)
    host = next(filter(HOST.fullmatch, hosts), None) or _own(scope)
    return f"{scheme}://{host}{prefix}"


def _first(headers: Headers, name: str) -> str:
    values = ",".join(headers.getlist(f"x-forwarded-{name}")).split(",")
    return next(filter(None, map(str.strip, values)), "")


def _prefix(headers: Headers) -> str:
    values = ",".join(headers.getlist("x-forwarded-prefix")).split(",")
    prefix = "".join(value.strip().rstrip("/") for value in values)
    return prefix if PREFIX.fullmatch(prefix) else ""


def _forwarded(value: str) -> dict[str, str]:
    """The first value of each parameter of a Forwarded header; nothing if it cannot be read."""
    parameters: dict[str, str] = {}
    place = 0
    while place < len(value):
        if parameter := _PARAMETER.match(value, place):
            name, quoted, token = parameter.groups()
            text = token if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(name.lower(), text)
            place = parameter.end()
        if place < len(value):
            if value[place] not in _SEPARATORS:
                return {}
            place += 1
    return parameters


def _own(scope: Scope) -> str:
    """Where this server listens, for a request that names no host."""
    host, port = scope.get("server") or ("localhost", None)
    host = f"[{host}]" if ":" in host else host
    return host if port is None else f"{host}:{port}"
