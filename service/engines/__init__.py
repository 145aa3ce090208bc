"""Engines: what turns latents into images. Each serves one bundle."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from service.bundle import Precision

Latents = npt.NDArray[np.float32]
ClassLabels = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]
Inputs = tuple[Latents, ClassLabels | None]

T = TypeVar("T")


class EngineError(Exception):
    """An engine that cannot open its model or compute; the message is one line for people."""


class EngineBusyError(EngineError):
    """The engine has no room for the batch now; nothing is wrong with it."""


class EngineDeadlineError(EngineError):
    """The batch's deadline passed before the engine had computed it."""


@dataclass(slots=True)
class Terms:
    """What an engine should know about a batch besides its inputs.

    Attributes:
        deadline: time of the event loop's clock after which nobody wants the images; None: never.
        traceparent: the W3C trace context that the computation belongs to; known when `prepare`
            (see `Engine.generate`) has returned.
    """

    deadline: float | None = None
    traceparent: str | None = None


class Engine(Protocol):
    """The graph of one bundle, ready to run. Calls come from one event loop and never block it.

    Attributes:
        name: which engine this is and on what, e.g. `onnxruntime`, `onnxruntime-cuda`.
        version: the version of the library or server that computes; "" until it is known.
        filename: the graph of the bundle that it computes (see `service.bundle.graphs`).
        precision: in which that graph computes.
        concurrency: how many batches it computes at a time.
    """

    name: str
    version: str
    filename: str
    precision: Precision
    concurrency: int

    async def open(self) -> None:
        """Load the graph and check its signature against the manifest.

        Raises:
            EngineError: the graph cannot be loaded or has another signature.
        """

    async def check(self) -> None:
        """Return if the graph is loaded; cheap, and computes nothing.

        Raises:
            EngineError: it is not, and why.
        """

    async def generate(
        self, prepare: Callable[[], Inputs], finish: Callable[[Images], T], terms: Terms
    ) -> T:
        """Compute one batch: `finish(compute(*prepare()))`. Cancelling it ends the computation.

        What comes before and after the graph is handed in, so that each engine can run it where
        it is cheapest: an embedded one in the very thread that computes, without a switch between.
        Neither runs on the event loop.

        Args:
            prepare: returns latents, float32 [N, C, H, W], standard normal; and class labels,
                int64 [N], or None for an unconditional model.
            finish: takes images, uint8 [N, H, W, C], of which row i depends on row i of the
                inputs only, not on its batch.
            terms: what else there is to know.

        Raises:
            EngineBusyError: not now; another moment may do.
            EngineDeadlineError: not computed by the deadline of `terms`.
            EngineError: the computation failed. What `prepare` and `finish` raise passes through.
        """

    async def restart(self) -> None:
        """After a failure or a hang: leave calls in flight behind and be ready for new ones.

        The graph stays the one that `open` loaded, whatever has happened to its file since.

        Raises:
            EngineError: not now.
        """

    async def close(self) -> None:
        """Free the graph; does nothing when it is not open."""
