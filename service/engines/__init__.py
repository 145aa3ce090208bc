"""Engines: what turns latents into images. Each serves one bundle."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

Latents = npt.NDArray[np.float32]
ClassLabels = npt.NDArray[np.int64]
Images = npt.NDArray[np.uint8]
Inputs = tuple[Latents, ClassLabels | None]

T = TypeVar("T")


class EngineError(Exception):
    """An engine that cannot open its model or compute; the message is one line for people."""


class Engine(Protocol):
    """The graph of one bundle, ready to run. Calls come from one event loop and never block it.

    Attributes:
        name: which engine this is, e.g. `onnxruntime`.
        version: the version of the library or server that computes.
        concurrency: how many batches it computes at a time.
    """

    name: str
    version: str
    concurrency: int

    async def open(self) -> None:
        """Load the graph and check its signature against the manifest.

        Raises:
            EngineError: the graph cannot be loaded or has another signature.
        """

    async def ready(self) -> bool:
        """Whether the graph is loaded; cheap, and computes nothing."""

    async def generate(self, prepare: Callable[[], Inputs], finish: Callable[[Images], T]) -> T:
        """Compute one batch: `finish(compute(*prepare()))`.

        What comes before and after the graph is handed in, so that each engine can run it where
        it is cheapest: an embedded one in the very thread that computes, without a switch between.
        Neither runs on the event loop.

        Args:
            prepare: returns latents, float32 [N, C, H, W], standard normal; and class labels,
                int64 [N], or None for an unconditional model.
            finish: takes images, uint8 [N, H, W, C], of which row i depends on row i of the
                inputs only, not on its batch.

        Raises:
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
