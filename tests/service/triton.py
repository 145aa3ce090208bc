"""The real Triton server, run for tests."""

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx

from service.bundle import Bundle, load_bundle
from service.tools import triton_server


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    with ExitStack() as stack:
        listeners = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listener.getsockname()[1] for listener in listeners]


class Repository:
    """A folder of bundles that a server serves."""

    def __init__(self, models: Path) -> None:
        self.models = models

    def bundle(self, name: str) -> Bundle:
        return load_bundle(self.models / name)


class Triton:
    """A server that can be killed, frozen and started again on the same ports."""

    def __init__(self, models: Path, options: Sequence[str] = ()) -> None:
        self.models = models
        self.options = options
        self.http, self.grpc, self.metrics = free_ports(3)
        self._stack = ExitStack()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.grpc}"

    def start(self) -> None:
        self.server = self._stack.enter_context(
            triton_server.running(
                self.models,
                http=self.http,
                grpc=self.grpc,
                metrics=self.metrics,
                options=self.options,
            )
        )

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.kill()  # an orderly end takes seconds, and tests have no use for it
        self._stack.close()

    def kill(self) -> None:
        """As the kernel does when memory runs out: the server and its instances at once."""
        os.killpg(self.server.process.pid, signal.SIGKILL)

    def signal(self, number: signal.Signals) -> None:
        os.killpg(self.server.process.pid, number)

    def load(self, model: str) -> None:
        self._control(model, "load")

    def unload(self, model: str) -> None:
        self._control(model, "unload")

    def counter(self, name: str, **labels: str) -> float:
        """One of Triton's own figures, summed over the lines that have these labels."""
        lines = httpx.get(f"http://127.0.0.1:{self.metrics}/metrics").text.splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [
            float(line.split()[-1])
            for line in lines
            if line.startswith(f"{name}{{") and all(label in line for label in wanted)
        ]
        assert found, f"Triton has no {name} {labels}"
        return sum(found)

    def _control(self, model: str, what: str) -> None:
        url = f"http://127.0.0.1:{self.http}/v2/repository/models/{model}/{what}"
        httpx.post(url, timeout=30).raise_for_status()


@contextmanager
def triton_over(models: Path, *options: str) -> Iterator[Triton]:
    """A running server over a folder of bundles, with further arguments of tritonserver."""
    triton_server.install()
    triton = Triton(models, options)
    triton.start()
    try:
        yield triton
    finally:
        triton.stop()
