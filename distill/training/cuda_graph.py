"""Phases of a training step as CUDA graphs: captured once, then launched whole.

Launching some thousand kernels a step keeps a processor core busy for longer than a card needs to
compute a small network. A captured phase is two graphs: one of a micro-batch's `compute`, which is
replayed for each, and one of the phase's `end`.

A graph is frozen: it launches the kernels that Python launched while it was captured, with the
numbers that Python had then, on the memory that it had then. So

- numbers that change lie in tensors that are filled before (`distill.training.phase`);
- random draws follow the seed: torch keeps the seed and the offset of a captured generator on the
  device and sets both before a replay, so that after the same `torch.manual_seed` a replay draws
  what eager code draws (CUDAGeneratorImpl.h, "CUDA Graph-safe RNG states");
- a cast of weights under autocast is captured with the forward pass that it is for: autocast's
  cache lives as long as the outermost context, which `Denoiser.forward` enters and leaves;
- tensors that were moved since (a state that was loaded) are noticed by their addresses before a
  replay, and the phase is captured anew.

The graphs share one pool of memory, so that it holds the largest phase and not their sum. That
allows them to overwrite each other's memory: what outlives a graph lies outside the pool, in
tensors that were there before the capture, and only one graph runs at a time.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from distill.errors import first_line
from distill.training.distributed import DistributedContext

# Kernels are chosen, and memory is laid out, in the first steps.
EAGER_STEPS = 3

# By how much a replayed phase may change something otherwise than the eager one on the same draws:
# as a share of the change, both measured by their norms. Kernels that add by atomics give other
# last bits each time; through the rounding of a bfloat16 network these grow to less than 1 % of a
# gradient. Adam divides each weight's gradient by its own size, so that the weights whose gradient
# is nothing but rounding move as far as the others do. Another noise, mask or label in the
# micro-batch changes a gradient by as much as it is large.
BOUNDS = {"losses": 0.02, "gradients": 0.02, "weights": 0.1, "moments": 0.1, "average": 0.1}
ROUNDING = 1e-6  # of a tensor's own norm: what is added to it is rounded to float32


class Phase(Protocol):
    """What can be captured; see `distill.training.phase.Phase`."""

    def compute(self, last: bool) -> None:
        """Compute one micro-batch, on the device only."""

    def end(self) -> None:
        """Take the step, on the device only."""

    def was_taken(self) -> bool:
        """Whether the last step was not skipped."""

    def changing(self) -> dict[str, list[Tensor]]:
        """Every tensor that both change, by what it is."""

    def reading(self) -> list[Tensor]:
        """Further tensors that both read in every step."""


Replay = Callable[[], None]


class Recorder(Protocol):
    """What captures work on the device."""

    def aside(self) -> AbstractContextManager[None]:
        """Return a context in which work runs where it will be captured, in its turn."""

    def record(self, work: Callable[[], None]) -> Replay:
        """Capture a function's work; return what does it again. It need not do it itself."""

    def clean_up(self) -> None:
        """Leave the device to eager work after a capture that failed."""


def run_eagerly(phase: Phase, prepares: Sequence[Callable[[], None]]) -> None:
    """Go through a phase without a graph."""
    for number, prepare in enumerate(prepares, start=1):
        prepare()
        phase.compute(last=number == len(prepares))
    phase.end()


class _Captured(NamedTuple):
    compute: Replay
    end: Replay
    addresses: list[int]


class StepGraphs:
    """The graphs of all phases of one training.

    Args:
        recorder: what captures them.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder: Recorder | None = recorder
        self._captured: dict[Phase, _Captured] = {}
        self._eager: Counter[Phase] = Counter()

    @property
    def replayed(self) -> int:
        """How many phases are replayed by now."""
        return len(self._captured)

    def run(self, phase: Phase, prepares: Sequence[Callable[[], None]]) -> None:
        """Go through a phase, by its graphs once there are some.

        The first steps are eager. The next one is computed twice from the same weights, eagerly
        and by new graphs, and where both agree the graphs are used from then on. Where they
        do not, or where the capture fails, all phases go on eagerly, and one line says why.

        Args:
            phase: to go through; its gradients are zero and its rates are set.
            prepares: make each micro-batch's random streams and inputs ready.
        """
        captured = self._captured.get(phase)
        if captured is not None and captured.addresses != _addresses(phase):
            del self._captured[phase], self._eager[phase]
            captured = None
        if captured is not None:
            _replay(captured, prepares)
        elif self._recorder is None or self._eager[phase] < EAGER_STEPS:
            self._eager[phase] += 1
            run_eagerly(phase, prepares)
        else:
            self._capture(phase, prepares, self._recorder)

    def _capture(
        self, phase: Phase, prepares: Sequence[Callable[[], None]], recorder: Recorder
    ) -> None:
        """Go through a phase, and have it replayed from now on if that does the same."""
        before = _copies(phase.changing())
        try:
            captured, fault = _checked_capture(phase, prepares, recorder, before)
        except RuntimeError as error:
            captured, fault = None, first_line(_cause(error))
        if captured is not None:
            self._captured[phase] = captured
        elif fault is not None:
            self._recorder = None
            self._captured.clear()
            recorder.clean_up()
            tqdm.write(f"note: the training goes on without CUDA graphs: {fault}", file=sys.stderr)
            _restore(phase, before)
            del before  # the eager step may need the memory
            run_eagerly(phase, prepares)


def _checked_capture(
    phase: Phase,
    prepares: Sequence[Callable[[], None]],
    recorder: Recorder,
    before: dict[str, list[Tensor]],
) -> tuple[_Captured | None, str | None]:
    """Go through a phase eagerly, capture it, go through it again and compare.

    Returns:
        The graphs; or what is wrong with them; or neither, after an eager step that was skipped:
        it compares nothing, the next one will.
    """
    with recorder.aside():
        run_eagerly(phase, prepares)
    if not phase.was_taken():
        return None, None
    eager = _copies(phase.changing())
    captured = _Captured(
        recorder.record(lambda: phase.compute(last=True)),
        recorder.record(phase.end),
        _addresses(phase),
    )
    _restore(phase, before)  # where a recorder does the work that it captures
    _replay(captured, prepares)
    fault = _difference(before, eager, phase.changing())
    return (captured, None) if fault is None else (None, fault)


def step_graphs(context: DistributedContext) -> StepGraphs | None:
    """The graphs of a training on this device; None where steps are not to be captured.

    On CUDA it says so, once, where several processes or a sharded network do not allow it: their
    exchanges are not captured.
    """
    if context.device.type != "cuda" or not context.cuda_graph:
        return None
    if context.size > 1 or context.shard:
        if context.is_main:
            print(
                "note: steps are not captured as CUDA graphs, which several processes and --shard "
                "do not allow",
                file=sys.stderr,
            )
        return None
    return StepGraphs(CudaRecorder(context.device))


def _replay(captured: _Captured, prepares: Sequence[Callable[[], None]]) -> None:
    for prepare in prepares:
        prepare()
        captured.compute()
    captured.end()


def _addresses(phase: Phase) -> list[int]:
    """Where everything lies that a graph of this phase knows by its address."""
    changing = [tensor for tensors in phase.changing().values() for tensor in tensors]
    return [tensor.data_ptr() for tensor in (*changing, *phase.reading())]


@torch.no_grad()
def _copies(tensors: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    return {name: [tensor.clone() for tensor in group] for name, group in tensors.items()}


@torch.no_grad()
def _restore(phase: Phase, copies: dict[str, list[Tensor]]) -> None:
    for name, group in phase.changing().items():
        for tensor, copied in zip(group, copies[name], strict=True):
            tensor.copy_(copied)


@torch.no_grad()
def _difference(
    before: dict[str, list[Tensor]],
    eager: dict[str, list[Tensor]],
    replayed: dict[str, list[Tensor]],
) -> str | None:
    """Say in what a replayed phase differs from the eager one, if in anything; waits for both."""
    rows = [
        torch.stack(
            [
                _distance(replayed[name], group),
                _distance(group, before[name]),
                torch.stack([tensor.double().norm() for tensor in group]).norm(),
            ]
        )
        for name, group in eager.items()
    ]
    for name, (apart, moved, size) in zip(eager, torch.stack(rows).tolist(), strict=True):
        # "not" finds a NaN too; what has no bound must be equal.
        if not apart <= BOUNDS.get(name, 0) * moved + ROUNDING * size:
            return (
                f"the {name} of a replayed step are {apart:.2g} from those of the eager one, "
                f"which changed by {moved:.2g}"
            )
    return None


def _distance(some: list[Tensor], others: list[Tensor]) -> Tensor:
    pairs = zip(some, others, strict=True)
    return torch.stack([(a - b).double().norm() for a, b in pairs]).norm()


def _cause(error: Exception) -> Exception:
    """The first error: a capture that is broken off raises another, which says less."""
    while isinstance(error.__context__, Exception):
        error = error.__context__
    return error


class CudaRecorder:
    """Captures work as graphs that share one pool of memory, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See `Recorder`: what torch makes anew for each stream is there when a capture begins."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            current.wait_stream(self._stream)

    def record(self, work: Callable[[], None]) -> Replay:
        """See `Recorder`: nothing is computed."""
        graph = torch.cuda.CUDAGraph()
        # The outer context: torch's own leaves its stream the current one where a capture fails.
        # "thread_local": another thread may copy the next images to the device meanwhile.
        with (
            torch.cuda.stream(self._stream),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            work()
        return graph.replay

    def clean_up(self) -> None:
        """See `Recorder`: torch leaves a generator and a pool in the midst of a failed capture."""
        device = self._stream.device
        fresh = torch.Generator(device).graphsafe_get_state()
        torch.cuda.default_generators[device.index].graphsafe_set_state(fresh)
        with suppress(RuntimeError):  # said by the first of these where the capture did end
            torch._C._cuda_endAllocateToPool(device.index, self._pool)
            torch._C._cuda_releasePool(device.index, self._pool)
        torch.cuda.empty_cache()
