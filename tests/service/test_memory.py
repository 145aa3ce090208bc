"""Requests leave no cycles: collecting them stopped the server for 70 ms at a time."""

import asyncio
import gc
import json
from http.client import HTTPConnection

import pytest
import uvicorn

from service.app import create_app
from service.http.protocol import BoundedProtocol

pytestmark = pytest.mark.slow

REQUESTS = 50


@pytest.mark.parametrize("traced", [False, True])
def test_a_request_leaves_nothing_for_the_garbage_collector(settings, traced):
    if traced:
        settings = settings.model_copy(update={"traces": "http://127.0.0.1:1"})

    def request(connection: HTTPConnection, seed: int) -> None:
        body = json.dumps({"class_label": 1, "seed": seed})
        connection.request("POST", "/generate", body, {"content-type": "application/json"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()[:4]) == (200, b"\x89PNG")

    def requests(connection: HTTPConnection, count: int) -> None:
        for seed in range(count):
            request(connection, seed)

    async def scenario() -> list[str]:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            config = uvicorn.Config(app, port=0, http=BoundedProtocol, ws="none", lifespan="off")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 it has no event
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            connection = HTTPConnection("127.0.0.1", port)
            await asyncio.to_thread(requests, connection, 5)
            gc.collect()
            gc.disable()
            await asyncio.to_thread(requests, connection, REQUESTS)
            gc.set_debug(gc.DEBUG_SAVEALL)
            gc.collect()
            left = [type(thing).__name__ for thing in gc.garbage]
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
            connection.close()
            server.should_exit = True
            await serving
        return left

    left = asyncio.run(scenario())
    assert len(left) < REQUESTS, f"of each request: {sorted(set(left))}"
