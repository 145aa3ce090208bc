"""Just enough of a cluster to play a rollout with real gateways: a Service, and pods with probes.

The Service is what kube-proxy makes of one: each new connection goes to one of the endpoints, and
stays there whatever becomes of the endpoint. A pod is a process that is started, probed and ended
as its specification in the chart says.
"""

import asyncio
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from tests.service.waiting import DEFECT_SECONDS


class Service:
    """One address before all endpoints."""

    def __init__(self) -> None:
        self.endpoints: list[Pod] = []
        self.connections: Counter[str] = Counter()  # by pod
        self._turns = cycle(range(1 << 30))
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Service":
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        pod = self.endpoints[next(self._turns) % len(self.endpoints)]
        self.connections[pod.name] += 1
        try:
            answers, forth = await asyncio.open_connection("127.0.0.1", pod.port)
        except OSError:  # nobody listens there any more: the client sees a reset
            back.transport.abort()
            return
        for reader, writer in ((client, forth), (answers, back)):
            task = asyncio.create_task(_pump(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


class Pod:
    """A gateway that lives by the specification of a pod of the chart."""

    def __init__(self, name: str, spec: Mapping[str, Any], models: Path, log: Path) -> None:
        self.name, self.log = name, log
        (container,) = spec["containers"]
        self._probes = container["startupProbe"], container["readinessProbe"]
        self._sleeps = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        self._grace = spec["terminationGracePeriodSeconds"]
        self._command = ("-m", "service.cli", "serve", "--port", "0", "--models", str(models))
        given = {one["name"]: one["value"] for one in container["env"]}
        # All pods have the one address here, so no port can be the same.
        self._environment = os.environ | given | {"SID_METRICS_PORT": "0", "SID_CONCURRENCY": "1"}

    async def start(self) -> None:
        """Run it until it is ready, by its own probes."""
        with self.log.open("w") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *self._command, env=self._environment, stdout=log, stderr=log
            )
        async with asyncio.timeout(DEFECT_SECONDS):
            while not (address := re.search(r"http://[0-9.]+:(\d+)", self.log.read_text())):
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)
            self.port = int(address[1])
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as http:
                for probe in self._probes:
                    while not await self._answers(http, probe):  # noqa: ASYNC110 as a kubelet
                        await asyncio.sleep(probe["periodSeconds"])

    async def _answers(self, http: httpx.AsyncClient, probe: Mapping[str, Any]) -> bool:
        try:
            answer = await http.get(probe["httpGet"]["path"], timeout=probe["timeoutSeconds"])
        except httpx.TransportError:
            return False
        return answer.is_success

    async def end(self, service: Service, lag: float) -> float:
        """End it as a kubelet does, while the Service takes `lag` seconds to hear of that.

        Returns the seconds that were left of its grace period.
        """
        told = time.monotonic()
        asyncio.get_running_loop().call_later(lag, service.endpoints.remove, self)
        await asyncio.sleep(self._sleeps)
        self.process.send_signal(signal.SIGTERM)
        left = self._grace - (time.monotonic() - told)
        async with asyncio.timeout(left):  # then it would be killed
            await self.process.wait()
        return self._grace - (time.monotonic() - told)

    async def kill(self) -> None:
        """Whatever it does."""
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
