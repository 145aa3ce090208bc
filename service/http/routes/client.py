"""/client: the client for Python, for programs to install that have no server."""

import asyncio
from functools import cache
from typing import NamedTuple

from fastapi import APIRouter, Response

from service.http.problems import NotFoundError, responses
from service.http.routes import tags

router = APIRouter(tags=[tags.CLIENT])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_WHEEL = "application/octet-stream"


class Wheel(NamedTuple):
    """A wheel: the file's name and its bytes."""

    name: str
    content: bytes


async def client_wheel() -> Wheel:
    """The client as a wheel, made when it is first asked for."""
    return await asyncio.to_thread(_client_wheel)


@router.get(
    "/client",
    summary="Find the client for Python",
    status_code=307,
    response_class=Response,
    responses={307: {"description": "The wheel's address, in `Location`."}},
)
async def find_client() -> Response:
    """Lead to the client's wheel, whose name has its version: pip takes no other name."""
    wheel = await client_wheel()
    # Relative to this very path, and so right behind any proxy.
    return Response(status_code=307, headers={"Location": f"client/{wheel.name}"})


@router.get(
    "/client/{file}",
    summary="Download the client for Python",
    response_class=Response,
    responses={
        200: {"description": "The wheel.", "content": {_WHEEL: _BINARY}},
        **responses(404, 422),
    },
)
async def download_client(file: str) -> Response:
    """The client as a wheel, for `pip install`; it needs httpx and nothing of the server."""
    wheel = await client_wheel()
    if file != wheel.name:
        raise NotFoundError(f"there is no {file} here; this server's client is {wheel.name}")
    # Asked again each time: the next release of the server has another client.
    return Response(wheel.content, media_type=_WHEEL, headers={"Cache-Control": "no-cache"})


@cache
def _client_wheel() -> Wheel:
    from service.client import wheel_file  # and with it httpx, which no other route needs

    return Wheel(wheel_file.NAME, wheel_file.content())
