"""A rolling update by the chart's own timings, with real gateways under load: no request fails."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from importlib.util import find_spec

import httpx
import pytest

from tests.bundles import write_bundle
from tests.deploy.chart import rendered
from tests.deploy.cluster import Pod, Service
from tests.service.waiting import happens

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("helm_python") is None,
        reason="Helm is not installed (pip install helm-python-sdk)",
    ),
]


async def keeps_connections(url, seed, found, done, pause):
    """A client that uses one connection as long as it may."""
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        while not done.is_set():
            seed += 100
            await ask(http, seed, found)
            await asyncio.sleep(pause)


async def opens_connections(url, seed, found, done):
    """A client that takes a new connection for each request."""
    while not done.is_set():
        seed += 100
        async with httpx.AsyncClient(base_url=url, timeout=30) as http:
            await ask(http, seed, found)


async def ask(http, seed, found):
    try:
        if seed % 2:
            answer = await http.get("/generate", params={"seed": seed, "n": 2})
        else:
            answer = await http.post("/generate", json={"seed": seed})
        found[answer.status_code] += 1
    except httpx.TransportError as error:
        found[repr(error)] += 1


async def roll(spec, models, folder):
    """Replace both of two gateways, one after the other, while sixteen clients draw.

    Returns what became of the requests, how many connections each pod had, and the seconds that
    were left of each grace period.
    """
    found, done = Counter(), asyncio.Event()
    pods = [Pod(name, spec, models, folder / name) for name in ("old-1", "old-2", "new-1", "new-2")]
    # The latest that the chart allows for: as long as preStop sleeps, but for a second.
    (container,) = spec["containers"]
    lag = container["lifecycle"]["preStop"]["sleep"]["seconds"] - 1
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(Service())
        for pod in pods[:2]:
            await pod.start()
            stack.push_async_callback(pod.kill)
            service.endpoints.append(pod)
        clients = [
            *(keeps_connections(service.url, i, found, done, pause=0) for i in range(10)),
            *(keeps_connections(service.url, i, found, done, pause=1) for i in range(10, 13)),
            *(opens_connections(service.url, i, found, done) for i in range(13, 16)),
        ]
        running = [asyncio.create_task(client) for client in clients]
        ends = []
        for old, new in ((pods[0], pods[2]), (pods[1], pods[3])):
            await new.start()
            stack.push_async_callback(new.kill)
            service.endpoints.append(new)
            ends.append(asyncio.create_task(old.end(service, lag)))
        left = await asyncio.gather(*ends)
        before = found.total()
        await happens(lambda: found.total() >= before + 100)
        done.set()
        await asyncio.gather(*running)
        assert [pod.process.returncode for pod in pods] == [0, 0, None, None]
    return found, service.connections, left


def test_a_rolling_update_under_load_fails_no_request(tmp_path):
    write_bundle(tmp_path / "models", resolution=28)
    spec = rendered("default").pod("gateway")
    found, connections, left = asyncio.run(roll(spec, tmp_path / "models", tmp_path))
    assert set(found) == {200}, found
    # Each was asked, the old ones until they went and the new ones from when they came.
    assert min(connections.values()) > 0
    assert len(connections) == 4
    # preStop, the drain and little else: nothing was waited for that did not come.
    assert min(left) > 5
