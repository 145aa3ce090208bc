"""What the engines in this process share: one graph of a bundle, and threads that compute it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from service.bundle import (
    FILENAMES,
    PROCESSOR_PIXELS,
    Bundle,
    Manifest,
    Precision,
    batch_limit,
)
from service.engines import EngineError, Images, Inputs, Prepared
from service.engines.threads import DaemonThreads

T = TypeVar("T")

# Of each input and output: its type as numpy calls it, and its sizes; one that is free has a name.
Signature = Mapping[str, tuple[str, Sequence[int | str]]]


class Run(Protocol):
    """One computation, which the event loop may end."""

    def __call__(self, inputs: Inputs) -> Images:
        """Compute the images; raises whatever the library raises."""

    def cancel(self) -> None:
        """End it if the library can do that without harm; nothing once it is over."""


class EmbeddedEngine:
    """An engine in this process (see `engines.Engine`); a subclass adds its library.

    Attributes:
        reads: the graphs it can compute, of each precision the best first.
        largest_batch: the largest batch that it gains from, of small images: its `max_batch_size`
            if none is asked for.
        pixels: those of its largest batch, of large images.
        kind: of the devices that it computes on, as SID_DEVICES names them: cpu or cuda.

    Args:
        bundle: a verified bundle.
        number: which of those devices: a card's index; on the processors, which of the sessions.
        precision: in which to compute.
        threads: threads of one inference.
        concurrency: batches computed at a time, each on `threads` threads.
        max_batch_size: the largest batch that it will be given; None: `largest_batch`.

    Raises:
        EngineError: it reads no graph that the bundle holds in that precision.
    """

    name: str
    version: str
    device: str
    kind: ClassVar[str] = "cpu"
    reads: ClassVar[Sequence[str]]
    largest_batch: ClassVar[int] = 8  # more only wait longer on processors (docs/notebook.md)
    pixels: ClassVar[int] = PROCESSOR_PIXELS

    def __init__(
        self,
        bundle: Bundle,
        *,
        precision: Precision = "float32",
        threads: int,
        concurrency: int,
        max_batch_size: int | None = None,
        number: int = 0,
    ) -> None:
        held = [name for name in self.reads if bundle.holds(name)]
        fitting = [name for name in held if FILENAMES[name] == precision]
        if not fitting:
            raise EngineError(
                f"{bundle.manifest.name}: {self.name} cannot compute it in {precision}; of what "
                f"the bundle holds it reads {', '.join(self.precisions(bundle)) or 'nothing'}"
            )
        self.filename = fitting[0]
        self.precision = precision
        self.version = ""
        self.device = f"{self.kind}:{number}"
        self.concurrency = concurrency
        self.max_batch_size = max_batch_size or batch_limit(
            self._largest_batch(), bundle.manifest.image_shape, self.pixels
        )
        self._bundle = bundle
        self._number = number
        self._threads = threads
        self._session: Any = None
        self._workers: DaemonThreads | None = None

    def _largest_batch(self) -> int:
        """The largest batch that it gains from, of its graph and of small images."""
        return self.largest_batch

    @classmethod
    def precisions(cls, bundle: Bundle) -> list[Precision]:
        """In which it can compute the bundle."""
        return list(dict.fromkeys(FILENAMES[name] for name in cls.reads if bundle.holds(name)))

    @classmethod
    def installed(cls) -> bool:
        """Whether its library is there; not on the event loop, for it may be imported."""
        raise NotImplementedError

    def _load(self, path: Path) -> Any:
        """Open a graph whose signature is right; raises EngineError naming the file."""
        raise NotImplementedError

    def _begin(self, session: Any) -> Run:
        """Make ready to compute a batch with what `_load` returned."""
        raise NotImplementedError

    def _reason(self, error: Exception) -> str:
        """What an exception of the library says, in one line."""
        raise NotImplementedError

    async def open(self) -> None:
        """Load the graph and check its signature; raises EngineError naming the file."""
        self._workers = self._start_threads()
        self._session = await self._workers.run(self._load, self._bundle.graph(self.filename))

    async def check(self) -> None:
        """Return if the graph is loaded; raises EngineError when it is not."""
        if self._session is None:
            raise EngineError(f"{self._bundle.manifest.name}: the engine is not open")

    async def generate(
        self,
        prepare: Callable[[], Prepared],
        finish: Callable[[Images], T],
        deadline: float | None = None,  # noqa: ARG002 no batch waits here: a thread is free
    ) -> T:
        """Compute one batch, all of it in one of the engine's threads (see `Engine.generate`)."""
        await self.check()
        assert self._workers is not None
        run = self._begin(self._session)
        try:
            return await self._workers.run(self._compute, run, prepare, finish)
        except asyncio.CancelledError:
            run.cancel()
            raise

    def _compute(
        self, run: Run, prepare: Callable[[], Prepared], finish: Callable[[Images], T]
    ) -> T:
        inputs = prepare().inputs
        try:
            images = run(inputs)
        except Exception as error:  # the libraries' exceptions have no common base of their own
            raise EngineError(f"{self._bundle.manifest.name}: {self._reason(error)}") from error
        return finish(images)

    async def restart(self) -> None:
        """Leave the threads to their calls, which end or hang, and start others."""
        await self._stop_threads()
        self._workers = self._start_threads()

    async def close(self) -> None:
        """Free the graph; a call that hangs is left behind, not waited for."""
        self._session = None
        await self._stop_threads()

    def _start_threads(self) -> DaemonThreads:
        name = f"{self.name}-{self._bundle.manifest.name}-{self.device}"
        return DaemonThreads(self.concurrency, name)

    async def _stop_threads(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            await workers.stop()


def check_signature(signature: Signature, manifest: Manifest, path: Path) -> None:
    """Check that a graph takes and gives what the bundle contract says.

    Raises:
        EngineError: an input or output is missing, extra, or of another type or shape.
    """
    expected = manifest.signature
    if set(signature) != set(expected):
        raise EngineError(
            f"{path}: the graph's inputs and outputs are {', '.join(sorted(signature)) or 'none'}; "
            f"the manifest asks for {', '.join(sorted(expected))}"
        )
    for name, (dtype, row) in expected.items():
        found_dtype, shape = signature[name]
        free = bool(shape) and isinstance(shape[0], str)
        if found_dtype != dtype or not free or tuple(shape[1:]) != row:
            raise EngineError(
                f"{path}: {name} is {found_dtype} {_show(shape)}, "
                f"the manifest asks for {dtype} {_show(['N', *row])} with N free"
            )


def _show(shape: Sequence[object]) -> str:
    return f"[{', '.join(str(size) for size in shape)}]"
