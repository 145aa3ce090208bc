"""The variables SID_*: one that no setting has was mistyped, and ignoring it may be unsafe."""

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

_PREFIX = "SID_"
_HOST = "_SERVICE_HOST"
_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
CLIENTS = {"SID_KEY": "SID_KEYS"}
"""Variables that the client's commands read, each with the server's own of a like name."""


class UnknownVariableError(Exception):
    """A variable SID_* that means nothing to the server; the message names the one meant."""


def check_variables(environment: Mapping[str, str], settings: Iterable[str]) -> None:
    """Refuse variables SID_* that would be ignored: `SID_KEY=keys.txt` would serve openly.

    What Kubernetes puts into a pod for a Service whose name begins with `sid-` is passed by.

    Args:
        environment: the process's.
        settings: the names of the settings' fields.

    Raises:
        UnknownVariableError: there is one, or several, which the message names.
    """
    known = {f"{_PREFIX}{name.upper()}" for name in settings}
    # The settings are read whatever their case is.
    ours = {name: name.upper() for name in sorted(environment) if name.upper().startswith(_PREFIX)}
    links = _service_links(environment)
    unknown = [name for name in ours if ours[name] not in known and not name.startswith(links)]
    if unknown:
        raise UnknownVariableError("; ".join(_explain(name, sorted(known)) for name in unknown))


def service_ports(environment: Mapping[str, str], settings: Iterable[str]) -> list[str]:
    """Settings' variables that hold what Kubernetes says of a Service, and so no setting.

    Of a Service named `sid` that is SID_PORT=tcp://10.0.0.2:80, of `sid-metrics` SID_METRICS_PORT.

    Args:
        environment: the process's.
        settings: the names of the settings' fields.
    """
    links = {f"{service}_PORT" for service in _services(environment)}
    known = (f"{_PREFIX}{field.upper()}" for field in settings)
    return [name for name in known if name in links and _ADDRESS.match(environment.get(name, ""))]


def _explain(name: str, known: list[str]) -> str:
    if (server := CLIENTS.get(name.upper())) is not None:
        return f"{name} is the client's; the server reads {server}: unset {name} for the server"
    nearest = get_close_matches(name.upper(), known, n=1)
    meant = f"did you mean {nearest[0]}?" if nearest else "unset it"
    return f"{name}: the server has no such setting; {meant} (docs/reference/configuration.md)"


def _service_links(environment: Mapping[str, str]) -> tuple[str, ...]:
    """How the variables begin that Kubernetes makes for each Service of the pod's namespace."""
    services = _services(environment)
    return tuple(f"{name}{part}" for name in services for part in ("_SERVICE_", "_PORT"))


def _services(environment: Mapping[str, str]) -> set[str]:
    """The Services of the pod's namespace, as variables spell them; none outside Kubernetes."""
    if "KUBERNETES_SERVICE_HOST" not in environment:
        return set()
    return {name.removesuffix(_HOST) for name in environment if name.endswith(_HOST)}
