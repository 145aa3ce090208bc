"""Choosing a network's form at the start of a training: each is measured, the fastest is taken."""

import copy
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch

from distill.errors import UserError, first_line
from distill.networks import Denoiser
from distill.training.cuda_graph import CudaRecorder
from distill.training.distributed import DistributedContext
from distill.training.network_form import NetworkForm, compile_blocks
from distill.training.prepare import prepared
from distill.training_config import LoopConfig, TrainingPrecision

CompileChoice = Literal["auto", "on", "off"]

COMPILE_SECONDS = 180.0  # after which no further block is compiled in order to be measured
WARM_UPS, REPEATS, MEASURE_SECONDS = 3, 20, 2.0  # of one form


class Measured(NamedTuple):
    """How long the forms took.

    Attributes:
        seconds: of one micro-batch forward and backward, by form.
        failed: why the other forms could not compute, in a line each.
        replayed: whether CUDA graphs of it were timed, else one launch after the other.
    """

    seconds: dict[NetworkForm, float]
    failed: dict[NetworkForm, str]
    replayed: bool


def choose_form(
    choice: CompileChoice,
    network: Denoiser,
    config: LoopConfig,
    context: DistributedContext,
) -> NetworkForm:
    """Choose the form of all networks of a training, and say which; every process must ask.

    On a CPU channels_last is fastest unless compiled, which is for the user to ask for there.
    On CUDA process 0 measures, on a copy, and all take what it found: some seconds, and what
    compiling takes, of which "auto" waits for no more than `COMPILE_SECONDS`.

    Args:
        choice: "auto" takes the fastest form, "off" the faster of the eager ones, "on" the
            compiled one.
        network: what is going to be trained; it is left as it is.
        config: with which micro-batch and precision.
        context: where, and among which processes.

    Raises:
        UserError: "on" was asked for and cannot be.
    """
    if context.shard:
        if choice == "on":
            raise UserError("--compile on: networks spread by --shard are not compiled: leave it")
        return "channels_last"
    if context.device.type != "cuda" and choice != "on":
        return "channels_last"
    table: Measured | UserError | None = None
    if context.is_main:
        try:
            table = _measured(choice, network, config, context)
        except UserError as error:
            table = error
    table = context.broadcast_from_main(table)
    if isinstance(table, UserError):
        raise table
    assert table is not None
    form = fastest(table.seconds)
    if context.is_main:
        print(described(form, table), flush=True)
    return form


def _measured(
    choice: CompileChoice,
    network: Denoiser,
    config: LoopConfig,
    context: DistributedContext,
) -> Measured:
    """Measure the forms that a choice leaves open."""
    forms: dict[CompileChoice, Sequence[NetworkForm]] = {
        "auto": ("nchw", "channels_last", "compiled"),
        "off": ("nchw", "channels_last"),
        "on": ("compiled",),
    }
    table = measure_forms(
        forms[choice],
        network,
        config.images_per_call,
        config.precision,
        context,
        replayed=context.device.type == "cuda" and context.cuda_graph and context.size == 1,
        patience=COMPILE_SECONDS if choice == "auto" else None,
    )
    if choice == "on" and table.failed:
        raise UserError(
            f"--compile on cannot be here ({table.failed['compiled']}): say --compile off, or give "
            "torch.compile what it lacks"
        )
    if not table.seconds:
        raise UserError(f"no step can be computed here: {'; '.join(table.failed.values())}")
    return table


def fastest(seconds: dict[NetworkForm, float]) -> NetworkForm:
    """The form that took least; of equal ones the first."""
    return min(seconds, key=seconds.__getitem__)


def described(form: NetworkForm, table: Measured) -> str:
    """What was chosen, and by which numbers, in one line."""
    others = [
        f"{name} {1000 * seconds:.3g}" for name, seconds in table.seconds.items() if name != form
    ]
    failed = [f"{name} cannot be: {reason}" for name, reason in table.failed.items()]
    numbers = ", ".join([f"{1000 * table.seconds[form]:.3g} ms a micro-batch", *others])
    how = "measured as CUDA graphs" if table.replayed else "measured without CUDA graphs"
    return f"network form: {form} ({'; '.join([numbers, how, *failed])})"


def measure_forms(
    forms: Sequence[NetworkForm],
    network: Denoiser,
    images: int,
    precision: TrainingPrecision,
    context: DistributedContext,
    replayed: bool = False,
    patience: float | None = None,
) -> Measured:
    """Time a micro-batch, forward and backward in train mode, in each form, on any device.

    Args:
        forms: which.
        network: of which copies are timed, one after the other.
        images: in a micro-batch.
        precision: of the training.
        context: where.
        replayed: time the replay of a CUDA graph, as the steps of a training will be, where the
            launches would otherwise be what is measured. If one form cannot be captured all are
            timed without.
        patience: seconds of compiling after which a form counts as failed; None: any.
    """
    seconds: dict[NetworkForm, float] = {}
    failed: dict[NetworkForm, str] = {}
    devices = [context.device] if context.device.type == "cuda" else []
    for form in forms:
        try:
            with torch.random.fork_rng(devices):
                seconds[form] = _seconds(
                    form, network, images, precision, context, replayed, patience
                )
        except _NotCaptured:
            replayed = False
            break
        except UserError:
            raise
        except torch.OutOfMemoryError as error:
            failed[form] = first_line(error)
        except Exception as error:  # of dynamo, Inductor, Triton, a compiler: no common kind
            if form != "compiled":
                raise
            failed[form] = first_line(getattr(error, "inner_exception", error))
        finally:
            gc.collect()  # a compiled copy is part of circles
            if devices:
                torch.cuda.empty_cache()
    else:
        return Measured(seconds, failed, replayed)
    # Not where the exception still holds the copy of the network that was not captured.
    return measure_forms(forms, network, images, precision, context, replayed, patience)


class _NotCaptured(Exception):
    """A step cannot be captured as a CUDA graph."""


@contextmanager
def _compiling_at_most(patience: float | None) -> Iterator[None]:
    """Begin no further compilation after so many seconds, but raise TimeoutError."""
    from torch._dynamo.callback import callback_handler  # see `compile_blocks`

    began = time.monotonic()

    def look(_: object) -> None:
        if patience is not None and time.monotonic() - began > patience:
            raise TimeoutError(f"compiling took over {patience:g} s: --compile on waits for it")

    callback_handler.register_start_callback(look)
    try:
        yield
    finally:
        callback_handler.remove_start_callback(look)


def _seconds(
    form: NetworkForm,
    network: Denoiser,
    images: int,
    precision: TrainingPrecision,
    context: DistributedContext,
    replayed: bool,
    patience: float | None,
) -> float:
    """The median time of a micro-batch in one form."""
    network = prepared(copy.deepcopy(network), precision, context, form)
    network.train().requires_grad_(True)
    if form == "compiled":
        compile_blocks(network)
    config, device = network.config, context.device
    x = torch.zeros(images, *config.latent_shape, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    sigma = torch.ones(images, 1, 1, 1, device=device)
    labels = torch.zeros(images, config.label_dim, device=device) if config.label_dim else None
    augment = torch.zeros(images, config.augment_dim, device=device) if config.augment_dim else None

    def micro_batch() -> None:
        network(x, sigma, labels, augment).square().mean().backward()

    with _compiling_at_most(patience) if form == "compiled" else nullcontext():
        return median_seconds(_captured(micro_batch, device) if replayed else micro_batch, device)


def _captured(compute: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """The same as the replay of a CUDA graph, captured after a warm-up."""
    recorder = CudaRecorder(device)
    with recorder.aside():
        for _ in range(WARM_UPS):
            compute()
    try:
        return recorder.record(compute)
    except RuntimeError as error:
        recorder.clean_up()  # or nothing could be drawn at random, nor captured, any more
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise _NotCaptured(first_line(error)) from error


def median_seconds(compute: Callable[[], None], device: torch.device) -> float:
    """The median time of a call after a warm-up: of `REPEATS`, fewer if `MEASURE_SECONDS` pass."""
    for _ in range(WARM_UPS):
        compute()
    taken: list[float] = []
    while not taken or (len(taken) < REPEATS and sum(taken) < MEASURE_SECONDS):
        taken.append(_timed(compute, device))
    return statistics.median(taken)


def _timed(compute: Callable[[], None], device: torch.device) -> float:
    if device.type != "cuda":
        began = time.perf_counter()
        compute()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    compute()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000
