"""What a server says on standard output once it is ready."""

import json
import shlex
from typing import Any

import structlog

from service.observability import logs
from service.serving.catalogue import Catalogue


def say_triton_is_ready(grpc: int, http: int, metrics: int) -> None:
    """Say on which ports the real Triton of `sid triton` listens."""
    event = "Triton is ready"
    if logs.is_json():
        structlog.get_logger().info(event, grpc=grpc, http=http, metrics=metrics)
        return
    print(
        f"{event}: gRPC on 127.0.0.1:{grpc}, HTTP on 127.0.0.1:{http}, "
        f"metrics on http://127.0.0.1:{metrics}/metrics",
        flush=True,
    )


def stay_silent(_: str, __: Catalogue) -> None:
    """Where every line is JSON, the log's line `started` says it all."""


def announce(url: str, catalogue: Catalogue, wants_key: bool) -> None:
    """Say where the server is, with a request that works on what it serves."""
    name = catalogue.default or next(iter(catalogue.models))
    model = catalogue.models[name]
    body: dict[str, Any] = {"seed": 7}
    if classes := (manifest := model.bundle.manifest).classes:
        body = {"class_label": manifest.unmistakable(len(classes) - 1), **body}
    if name != catalogue.default:
        body = {"model": name, **body}
    # Quoted for zsh, to which the brackets of an IPv6 address are a pattern.
    address, key = shlex.quote(f"{url}/generate"), '-H "X-API-Key: $SID_KEY" ' if wants_key else ""
    print(
        f"SiD Serve is ready on {url} (open it in a browser); Ctrl-C stops it. "
        f"Try{', with your key in SID_KEY' if wants_key else ''}:\n"
        f"  curl {address} {key}-H 'content-type: application/json' "
        f"-d {shlex.quote(json.dumps(body))} -o picture.png",
        flush=True,
    )
