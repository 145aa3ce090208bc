"""Batches of a few sizes, in buffers that stay where they are: what a CUDA graph can replay.

Recorded work knows sizes and addresses by heart. So a batch is filled up to the next of a few
sizes, and each size has inputs and images on the device that are made once; what comes in is copied
there, what is drawn is copied out. On processors the same code runs, and proves itself.
"""

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from service.bundle import IMAGES
from service.engines import EngineError, Images, Inputs
from service.engines.threads import DaemonThreads

Rows = Mapping[str, tuple[str, Sequence[int]]]  # of each tensor its type, and one row's shape

_GRAPH_ID = "gpu_graph_id"  # ONNX Runtime's run option: under which number a run is recorded
_UNRECORDED = "-1"
_TIMED = 3  # batches of each size, of which the fastest counts
_CLEARLY = 1.25  # times as long as a larger batch, and a size is no use; less may be chance
_LONGEST_WAIT = 10.0  # seconds for batches of other models to end, before a recording


def padded_sizes(limit: int) -> list[int]:
    """The sizes that batches of at most `limit` are filled up to: 1, 2, 4, ... and `limit`."""
    return [*(1 << power for power in range((limit - 1).bit_length())), limit]


def worthwhile(seconds: Mapping[int, float]) -> list[int]:
    """The sizes that are worth having, by how long a batch of each takes; the largest always is.

    A larger batch may take less: for the smallest ones of a large network cuDNN's heuristic chose
    kernels that took 22 ms where a batch of 8 took 3.4 (docs/results/gpu.md).
    """
    kept: list[int] = []
    for size in sorted(seconds, reverse=True):
        if not kept or seconds[size] < _CLEARLY * min(seconds[larger] for larger in kept):
            kept.append(size)
    return kept[::-1]


def pad(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """`rows` and its last row again, until there are `size`: values that the graph can take."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


class PaddedSession:
    """A session of ONNX Runtime with its buffers and its thread, which computes batch by batch.

    One thread, because ONNX Runtime keeps a CUDA graph for the thread that recorded it. Any thread
    may call `run`; those that come while a batch is computed wait.

    Args:
        session: an `onnxruntime.InferenceSession`.
        signature: of the graph's inputs and its images, see `Manifest.signature`.
        limit: the largest batch.
        device: where the buffers lie: the memory as ONNX Runtime calls it, `cuda` or `cpu`, and
            which of the cards.
        recorded: whether the session records each size as a CUDA graph in its first run.
        name: of the thread, for profilers.

    Attributes:
        busy: whether a batch is being computed.
    """

    def __init__(
        self,
        session: Any,
        signature: Rows,
        *,
        limit: int,
        device: tuple[str, int],
        recorded: bool,
        name: str,
    ) -> None:
        self._session = session
        self._inputs = {name: row for name, row in signature.items() if name != IMAGES}
        self._recorded = recorded
        # What is not recorded has one size alone: at each change of it ONNX Runtime plans every
        # convolution anew, which takes longer than computing some rows for nothing.
        sizes = padded_sizes(limit) if recorded else [limit]
        self._buffers = {size: _Buffers(session, signature, size, device) for size in sizes}
        self._thread = DaemonThreads(1, name)
        self.busy = False

    def warm_up(self) -> None:
        """Compute a batch of each size: kernels are chosen, memory is taken, graphs recorded.

        The largest first, so that the smaller ones find their memory in what it left. Sizes that
        are not `worthwhile` are given up.

        Raises:
            Exception: whatever ONNX Runtime raises.
        """
        import onnxruntime

        seconds: dict[int, float] = {}
        for size in reversed(self._buffers):
            zeros = {
                name: np.zeros((size, *row), dtype) for name, (dtype, row) in self._inputs.items()
            }
            way = _GATE.recording() if self._recorded else _GATE.batch()
            self._thread.call(self._compute, size, zeros, onnxruntime.RunOptions(), way)
            if len(self._buffers) > 1:
                seconds[size] = min(self._seconds(size, zeros) for _ in range(_TIMED))
        if seconds:
            self._buffers = {size: self._buffers[size] for size in worthwhile(seconds)}

    def _seconds(self, size: int, inputs: Inputs) -> float:
        """How long a batch of one of the sizes takes, from the host's memory and back."""
        import onnxruntime

        began = time.perf_counter()
        self._thread.call(self._compute, size, inputs, onnxruntime.RunOptions(), _GATE.batch())
        return time.perf_counter() - began

    def run(self, inputs: Inputs, options: Any) -> Images:
        """The images of one batch.

        Args:
            inputs: by name, each with as many rows as images are wanted.
            options: an `onnxruntime.RunOptions` of this run alone. Once its `terminate` is set, a
                batch that waits is not computed.

        Raises:
            ValueError: the inputs are not what the graph takes, or more than the largest batch.
            EngineError: the session was closed.
            Exception: whatever ONNX Runtime raises.
        """
        count = max(len(inputs[name]) for name in self._inputs)
        for name, (dtype, row) in self._inputs.items():
            if (array := inputs[name]).dtype != dtype or array.shape != (count, *row):
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, not {dtype} {(count, *row)}"
                )
        size = next((size for size in self._buffers if size >= count), None)
        if size is None:
            raise ValueError(
                f"{count} images are more than the largest batch, {max(self._buffers)}"
            )
        padded = {name: pad(inputs[name], size) for name in self._inputs}
        return self._thread.call(self._compute, size, padded, options, _GATE.batch())[:count]

    def end(self) -> None:
        """Have the thread end after the batches that it was given."""
        self._thread.end()

    async def stop(self) -> None:
        """`end` it and wait a moment for it; a batch that hangs is left behind."""
        await self._thread.stop()

    def _compute(
        self, size: int, inputs: Inputs, options: Any, way: AbstractContextManager[None]
    ) -> Images:
        """Images of a batch of one of the sizes; runs in the session's thread."""
        options.add_run_config_entry(_GRAPH_ID, str(size) if self._recorded else _UNRECORDED)
        with way:
            if options.terminate:
                raise EngineError("the batch was given up before its turn")
            self.busy = True
            try:
                return self._buffers[size].compute(self._session, inputs, options)
            finally:
                self.busy = False


class _Buffers:
    """Inputs and images of batches of one size, on the device, bound to their names for good."""

    def __init__(self, session: Any, signature: Rows, size: int, device: tuple[str, int]) -> None:
        from onnxruntime import OrtValue

        values = {
            name: OrtValue.ortvalue_from_shape_and_type([size, *row], np.dtype(dtype).type, *device)
            for name, (dtype, row) in signature.items()
        }
        self._binding = session.io_binding()
        self._images = values.pop(IMAGES)
        self._inputs = values
        for name, value in values.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(IMAGES, self._images)

    def compute(self, session: Any, inputs: Inputs, options: Any) -> Images:
        """Images of a batch of just this size, in memory of their own."""
        for name, value in self._inputs.items():
            value.update_inplace(inputs[name])
        session.run_with_iobinding(self._binding, options)
        return np.array(self._images.numpy())  # on processors it is the buffer itself


class _Gate:
    """Lets batches of all sessions pass side by side, and a recording only when alone.

    While one thread records, CUDA lets no other thread copy, or both fail.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._batches = 0
        self._recording = False

    @contextmanager
    def batch(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._batches += 1
        try:
            yield
        finally:
            with self._changed:
                self._batches -= 1
                self._changed.notify_all()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Raises EngineError where batches do not end: one of them may hang."""
        with self._changed:
            self._changed.wait_for(lambda: not self._recording)
            self._recording = True  # no further batch begins
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: not self._batches, _LONGEST_WAIT):
                    raise EngineError(f"a batch of another model took over {_LONGEST_WAIT:g} s")
            yield
        finally:
            with self._changed:
                self._recording = False
                self._changed.notify_all()


_GATE = _Gate()
