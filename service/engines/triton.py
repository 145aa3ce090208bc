"""The production engine: Triton Inference Server, over gRPC.

The gateway's batches travel as they are; Triton's dynamic batcher joins those of several
gateways. What a bundle's folder holds is what Triton serves (its model repository), so a request
names the version of the manifest, and the canary image proves that it is the same graph.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any, TypeVar

import numpy.typing as npt
import structlog
import tritonclient.grpc.aio as tritonclient
from grpc.aio import UsageError
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from service.bundle import CONFIG_NAME, Bundle, Precision, triton_graph
from service.engines import (
    EngineBusyError,
    EngineDeadlineError,
    EngineError,
    Images,
    Prepared,
)
from service.engines.threads import DaemonThreads

T = TypeVar("T")

log = structlog.get_logger(__name__)

# Two, because all calls of a channel share one connection: a large answer holds up those behind it.
_CHANNELS = 2
_CHECK_SECONDS = 1.0  # a server that needs longer to say that it is ready is not
_RETRY_BUFFER = 64 << 20  # bytes of a request that gRPC keeps to send it again

# An image is a pure function of the request, so what one server's end interrupts, or its full
# queue refuses, may be drawn by another: once more, at once. Servers are taken in turn; those
# without a connection are passed over (one that is frozen has a connection: see the supervisor).
_SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": "inference.GRPCInferenceService"}],
            "retryPolicy": {
                "maxAttempts": 2,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.02s",
                "backoffMultiplier": 1,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}
_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    ("grpc.enable_http_proxy", 0),  # Triton is a neighbour, whatever the environment says
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.per_rpc_retry_buffer_size", _RETRY_BUFFER),
    # A connection of its own for each channel, also after a restart: never one that hangs.
    ("grpc.use_local_subchannel_pool", 1),
    # gRPC's own pauses grow to two minutes: a server that is back should be used at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class TritonEngine:
    """One model of one or several Triton servers that share the load (see `engines.Engine`).

    Args:
        bundle: a verified bundle, which is in the servers' model repository too.
        addresses: host:port of each server's gRPC front end.
        max_batch_size: largest batch that will be asked for.
        concurrency: batches under way at a time.

    Raises:
        EngineError: the graph that Triton is told to serve is not in the bundle.
    """

    name = device = "triton"
    largest_batch = 8  # where the settings say nothing: Triton joins them to larger ones

    def __init__(
        self, bundle: Bundle, *, addresses: Sequence[str], max_batch_size: int, concurrency: int
    ) -> None:
        self.version = ""
        self.filename = triton_graph(bundle.folder, bundle.manifest)
        if not bundle.holds(self.filename):
            raise EngineError(
                f"{bundle.folder / CONFIG_NAME} names {self.filename}, which is none of the "
                "bundle's files: publish it again"
            )
        graph = bundle.manifest.graphs.get(self.filename)
        self.precision: Precision = graph.precision if graph else "float32"
        self.concurrency = concurrency
        self._bundle = bundle
        self._addresses = addresses
        self.max_batch_size = max_batch_size
        self._clients: list[Any] = []
        self._next: Any = None
        self._examined = False
        self._why_closed = f"{bundle.manifest.name}: the engine is not open"
        self._threads: DaemonThreads | None = None

    async def open(self) -> None:
        """Make the channels. That a server is not there yet is no error: `check` tells."""
        # Noise and files are made beside the event loop; two threads keep its processor busy.
        self._threads = DaemonThreads(2, f"triton-{self._bundle.manifest.name}")
        try:
            await self.restart()
        except EngineError as error:
            self._why_closed = str(error)  # until a restart goes better

    async def check(self) -> None:
        """Return if a server has the model loaded; raises EngineError saying why none has."""
        # A channel asks servers in turn, and one that has it is enough: calls pass over the others.
        client = self._client()
        for remaining in reversed(range(2 * len(self._addresses))):
            try:
                await self._check_one(client)
            except EngineError:
                if not remaining:
                    raise
            else:
                return

    async def _check_one(self, client: Any) -> None:
        model, version = self._model
        with self._translated():
            if not self._examined:
                await self._examine(client)
            if not await client.is_model_ready(model, version, client_timeout=_CHECK_SECONDS):
                raise EngineError(f"{model}: Triton has not loaded version {version}")

    async def generate(
        self,
        prepare: Callable[[], Prepared],
        finish: Callable[[Images], T],
        deadline: float | None = None,
    ) -> T:
        """Compute one batch on one of the servers (see `Engine.generate`)."""
        if self._threads is None:
            raise EngineError(self._why_closed)
        inputs, traceparent = await self._threads.run(lambda: _packed(prepare()))
        images = await self._infer(inputs, deadline, traceparent)
        return await self._threads.run(finish, images)

    async def restart(self) -> None:
        """Make new channels: calls in flight end, and a connection that hangs is left behind."""
        if self._threads is None:
            raise EngineError(self._why_closed)
        target = await _target(self._addresses)
        self._examined = False  # it may be another server by now
        old, self._clients = (
            self._clients,
            [
                tritonclient.InferenceServerClient(target, channel_args=_CHANNEL_OPTIONS)
                for _ in range(_CHANNELS)
            ],
        )
        self._next = cycle(self._clients)
        await _close(old)

    async def close(self) -> None:
        """Close the channels; calls in flight end."""
        clients, self._clients = self._clients, []
        await _close(clients)
        threads, self._threads = self._threads, None
        if threads is not None:
            await threads.stop()

    @property
    def _model(self) -> tuple[str, str]:
        manifest = self._bundle.manifest
        return manifest.name, str(manifest.version)

    def _client(self) -> Any:
        if not self._clients:
            raise EngineError(self._why_closed)
        return next(self._next)

    async def _examine(self, client: Any) -> None:
        """Learn, once a connection, the server's version, and that it serves what we expect.

        That is the graph that the bundle's configuration names, in batches as large as ours. Tag
        and tolerance are those of that graph, so another one is never taken for it.

        Raises:
            EngineError, InferenceServerException: it does not, or cannot say.
        """
        model, version = self._model
        server = await client.get_server_metadata(client_timeout=_CHECK_SECONDS)
        answer = await client.get_model_config(model, version, client_timeout=_CHECK_SECONDS)
        served = answer.config.default_model_filename or self.filename
        if served != self.filename:
            raise EngineError(
                f"{model}: Triton serves {served}, and the bundle's {CONFIG_NAME} names "
                f"{self.filename}: load the model into Triton again; another graph is chosen by "
                "sid-distill publish --triton-precision, not by a configuration of Triton's own"
            )
        largest = answer.config.max_batch_size
        if largest < self.max_batch_size:
            raise EngineError(
                f"{model}: Triton takes batches of {largest} at most and the gateway may send "
                f"{self.max_batch_size}: lower SID_MAX_BATCH_SIZE"
            )
        self.version, self._examined = server.version, True

    async def _infer(
        self, inputs: list[Any], deadline: float | None, traceparent: str | None
    ) -> Images:
        model, version = self._model
        seconds = None
        if deadline is not None:
            seconds = deadline - asyncio.get_running_loop().time()
            if seconds <= 0:
                raise EngineDeadlineError(f"{model}: the deadline has passed")
        with self._translated(deadline):
            answer = await self._client().infer(
                model,
                inputs,
                model_version=version,
                # Triton's own, for the time in its queue, and gRPC's, for all of the call.
                timeout=None if seconds is None else max(1, int(seconds * 1e6)),
                client_timeout=seconds,
                headers={"traceparent": traceparent} if traceparent else None,
            )
        try:
            images: Images | None = answer.as_numpy("images")
        except ValueError as error:  # fewer bytes than its shape says
            raise EngineError(f"{model}: Triton's images cannot be read: {error}") from None
        shape = (inputs[0].shape()[0], *self._bundle.manifest.image_shape)
        if images is None or images.shape != shape or images.dtype != "uint8":
            received = "none" if images is None else f"{images.dtype} {images.shape}"
            raise EngineError(f"{model}: Triton's images are {received}, not uint8 {shape}")
        return images

    @contextlib.contextmanager
    def _translated(self, deadline: float | None = None) -> Iterator[None]:
        """Raise what a call raises as what it means.

        The statuses are those of Triton 2.51 (tests/service/engines/test_triton.py).
        """
        model = self._bundle.manifest.name
        try:
            yield
        except InferenceServerException as error:
            status = str(error.status()).removeprefix("StatusCode.")
            message = next(iter(str(error.message()).splitlines()), "")
            text = f"{model}: Triton: {message} ({status})"
            if status == "UNAVAILABLE" and "Exceeds maximum queue size" in message:
                raise EngineBusyError(text) from None
            if "Request timeout expired" in message:  # in its queue: ours, or its own longest
                late = deadline is not None and asyncio.get_running_loop().time() >= deadline
                raise (EngineDeadlineError if late else EngineBusyError)(text) from None
            if status == "DEADLINE_EXCEEDED" and deadline is not None:
                raise EngineDeadlineError(text) from None
            raise EngineError(text) from None
        except UsageError:
            raise EngineError(f"{model}: asked over a connection that was closed") from None
        except asyncio.CancelledError:  # what ends a call when its channel is closed
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise EngineError(f"{model}: the call was ended by a new connection") from None


async def _target(addresses: Sequence[str]) -> str:
    """gRPC's name of the servers: it balances over all addresses that a name stands for.

    Only IPv4 addresses can be listed, so several names are looked up here, at each (re)start; those
    that stand for nothing now are left out. One name is left to gRPC, which looks it up again
    whenever a connection is lost.

    Raises:
        EngineError: none can be looked up.
    """
    if len(addresses) == 1:
        return f"dns:///{addresses[0]}"
    loop = asyncio.get_running_loop()
    resolved: list[str] = []
    failed: list[str] = []
    for address in addresses:
        host, _, port = address.rpartition(":")
        try:
            answers = await loop.getaddrinfo(
                host, int(port), family=socket.AF_INET, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            failed.append(f"{address}: {getattr(error, 'strerror', None) or error}")
        else:
            resolved += (f"{ip!s}:{port}" for *_, (ip, *_) in answers)
    if not resolved:
        raise EngineError("; ".join(failed))
    if failed:
        log.warning("some Triton servers have no address", reasons=failed)
    return f"ipv4:{','.join(resolved)}"


def _packed(prepared: Prepared) -> tuple[list[Any], str | None]:
    """The inputs as Triton's client takes them, and the trace context."""
    inputs = [_input(name, array) for name, array in prepared.inputs.items()]
    return inputs, prepared.traceparent


def _input(name: str, array: npt.NDArray[Any]) -> Any:
    if array.ndim == 1:  # one number per image: [N, 1] for Triton, see config.pbtxt
        array = array[:, None]
    tensor = tritonclient.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


async def _close(clients: list[Any]) -> None:
    for client in clients:
        await client.close()
