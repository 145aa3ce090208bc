"""The embedded engine: ONNX Runtime on this machine's processors, in this process."""

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from service.bundle import Bundle, Manifest
from service.engines import EngineError, Images, Inputs, Terms
from service.engines.threads import DaemonThreads

T = TypeVar("T")

_FILENAME = "model.onnx"
_SILENT = 4  # errors come as exceptions too; warnings are about the exporter's business


class OnnxEngine:
    """One ONNX Runtime session and the threads that run it (see `engines.Engine`).

    Args:
        bundle: a verified bundle that holds a model.onnx.
        threads: threads of one inference (intra-op).
        concurrency: batches computed at a time, each on `threads` threads.
    """

    name = "onnxruntime"

    def __init__(self, bundle: Bundle, *, threads: int, concurrency: int) -> None:
        self.version = version("onnxruntime")
        self.concurrency = concurrency
        self._bundle = bundle
        self._threads = threads
        self._session: Any = None
        self._workers: DaemonThreads | None = None

    async def open(self) -> None:
        """Load the graph and check its signature; raises EngineError naming the file."""
        path = self._bundle.graph(_FILENAME)
        manifest = self._bundle.manifest
        self._workers = self._start_threads()
        session = await self._workers.run(open_session, path, self._threads)
        check_signature(session, manifest, path)
        self._session = session

    async def check(self) -> None:
        """Return if the session is open; raises EngineError when it is not."""
        if self._session is None:
            raise EngineError(f"{self._bundle.manifest.name}: the engine is not open")

    async def generate(
        self,
        prepare: Callable[[], Inputs],
        finish: Callable[[Images], T],
        terms: Terms,  # noqa: ARG002 a batch starts when a thread is free: none waits here
    ) -> T:
        """Compute one batch, all of it in one of the engine's threads (see `Engine.generate`)."""
        await self.check()
        assert self._workers is not None
        import onnxruntime

        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        try:
            return await self._workers.run(self._compute, self._session, prepare, finish, options)
        except asyncio.CancelledError:
            options.terminate = True  # frees the thread at the graph's next node
            raise

    def _compute(
        self,
        session: Any,
        prepare: Callable[[], Inputs],
        finish: Callable[[Images], T],
        options: Any,
    ) -> T:
        latents, class_labels = prepare()
        feeds: dict[str, Any] = {"latents": latents}
        if class_labels is not None:
            feeds["class_labels"] = class_labels
        try:
            (images,) = session.run(["images"], feeds, options)
        except Exception as error:  # ONNX Runtime's exceptions have no common base of their own
            raise EngineError(f"{self._bundle.manifest.name}: {_first_line(error)}") from error
        return finish(images)

    async def restart(self) -> None:
        """Leave the threads to their calls, which end or hang, and start others."""
        await self._stop_threads()
        self._workers = self._start_threads()

    async def close(self) -> None:
        """Free the session; a call that hangs is left behind, not waited for."""
        self._session = None
        await self._stop_threads()

    def _start_threads(self) -> DaemonThreads:
        return DaemonThreads(self.concurrency, f"onnx-{self._bundle.manifest.name}")

    async def _stop_threads(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            await workers.stop()


def open_session(path: Path, threads: int) -> Any:
    """Open an ONNX Runtime CPU session.

    Raises:
        EngineError: the file is no graph that this ONNX Runtime can run.
    """
    import onnxruntime  # here: half of the process's start-up time

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT
    # Threads that spin between batches starve the web server when processors are few.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            path, sess_options=options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # see generate
        raise EngineError(f"{path}: ONNX Runtime cannot load it: {_first_line(error)}") from error


def check_signature(session: Any, manifest: Manifest, path: Path) -> None:
    """Check that a session takes and gives what the bundle contract says.

    Raises:
        EngineError: an input or output is missing, extra, or of another type or shape.
    """
    expected: dict[str, tuple[str, tuple[int, ...]]] = {
        "latents": ("tensor(float)", manifest.latent_shape),
        "images": ("tensor(uint8)", manifest.image_shape),
    }
    if manifest.classes:
        expected["class_labels"] = ("tensor(int64)", ())
    found = {node.name: node for node in (*session.get_inputs(), *session.get_outputs())}
    if set(found) != set(expected):
        raise EngineError(
            f"{path}: the graph's inputs and outputs are {', '.join(sorted(found))}; "
            f"the manifest asks for {', '.join(sorted(expected))}"
        )
    for name, (dtype, shape) in expected.items():
        node = found[name]
        batch, *row = node.shape or [0]
        if node.type != dtype or tuple(row) != shape or isinstance(batch, int):
            raise EngineError(
                f"{path}: {name} is {node.type} {_show(node.shape)}, "
                f"the manifest asks for {dtype} {_show(['N', *shape])} with N free"
            )


def _show(shape: Sequence[object]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
