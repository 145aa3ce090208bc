"""Engines: what turns latents into images. Each serves one bundle."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from service.bundle import Precision

Images = npt.NDArray[np.uint8]
# What a graph takes, by the names of its inputs; the first axis of each is N.
Inputs = Mapping[str, npt.NDArray[Any]]

T = TypeVar("T")


class EngineError(Exception):
    """An engine that cannot open its model or compute; the message is one line for people."""


class EngineBusyError(EngineError):
    """The engine has no room for the batch now; nothing is wrong with it."""


class EngineDeadlineError(EngineError):
    """The batch's deadline passed before the engine had computed it."""


class Prepared(NamedTuple):
    """What `prepare` (see `Engine.generate`) returns.

    Attributes:
        inputs: what the graph computes from.
        traceparent: the W3C trace context that the computation belongs to; None: to none.
    """

    inputs: Inputs
    traceparent: str | None = None


class Engine(Protocol):
    """The graph of one bundle, ready to run. Calls come from one event loop and never block it.

    Attributes:
        name: which engine this is and on what, e.g. `onnxruntime`, `onnxruntime-cuda`.
        version: the version of the library or server that computes; "" until it is known.
        device: on what it computes, for people and metrics: `cuda:1` is the second card, `cpu:1`
            the second session on the processors; `triton` where servers say themselves.
        filename: the graph of the bundle that it computes (see `service.bundle.graphs`).
        precision: in which that graph computes.
        concurrency: how many batches it is given at a time.
        max_batch_size: the largest batch that it is given.
    """

    name: str
    version: str
    device: str
    filename: str
    precision: Precision
    concurrency: int
    max_batch_size: int

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
        self,
        prepare: Callable[[], Prepared],
        finish: Callable[[Images], T],
        deadline: float | None = None,
    ) -> T:
        """Compute one batch: `finish(compute(prepare()))`. Cancelling it ends the computation.

        What comes before and after the graph is handed in, so that each engine can run it where
        it is cheapest: an embedded one in the very thread that computes, without a switch between.
        Neither runs on the event loop.

        Args:
            prepare: returns the graph's inputs by name: `latents`, float32 [N, C, H, W], standard
                normal; and `class_labels`, int64 [N], unless the model is unconditional.
            finish: takes images, uint8 [N, H, W, C], of which row i depends on row i of the
                inputs only, not on its batch.
            deadline: time of the event loop's clock after which nobody wants the images; None:
                there is no such time.

        Raises:
            EngineBusyError: not now; another moment may do.
            EngineDeadlineError: not computed by the deadline.
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
