"""How fast the product trains on the card, eagerly, and whether a step waits for it."""

import gc
import traceback
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from distill.data.augment import augment
from distill.errors import UserError, first_line
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.training.form_choice import CompileChoice
from distill.training_config import TeacherConfig, TrainingPrecision
from tests.compare.transcription import Settings, Transcription
from tests.gpu.ceilings import matrix_product
from tests.gpu.networks import (
    layout,
    make_sid,
    make_teacher,
    network,
    random_images,
    sid_config,
)
from tests.gpu.record import Record
from tests.gpu.timing import on, seconds_per_call, synchronize

# A step of SiD in forward passes; a backward pass is two, one where only the input's gradient is
# wanted. psi's phase: generate 1, psi 1 + 2. theta's: theta 1 + 2, phi 1 + 1, psi 1 + 1.
_FORWARDS = 11
CIFAR_MICROBATCH = 128  # of the large network's batch of 256
_SETTLED = 6  # steps after which a training has done what it does once


class Speed(NamedTuple):
    """What was measured of a training: images a second, over so many steps, GiB at the peak."""

    images: float
    steps: int
    memory: float


def run(record: Record) -> None:
    """Fill the table, the rows with aims first."""
    cifar(record)
    row(record, "fashion", sid_speed(record, "fashion", 128, "bfloat16"))
    row(record, "64x64", sid_speed(record, "64x64", 256, "bfloat16"))
    steps(record)
    beside_transcription(record)
    row(record, "teacher", teacher_speed(record))
    row(record, "fashion float32", sid_speed(record, "fashion", 128, "float32"))
    cifar_whole(record)


def row(record: Record, key: str, speed: Speed) -> None:
    """Write a speed down."""
    record.row(key, speed.images, GiB=speed.memory, steps=speed.steps)


def cifar(record: Record, compiling: CompileChoice = "off") -> None:
    """The large network: speed, memory, and its share of what the card can do."""
    speed = sid_speed(record, "cifar", 256, "bfloat16", CIFAR_MICROBATCH, compiling, budget=14)
    row(record, "cifar", speed)
    record.row("cifar memory", speed.memory)
    ceiling = matrix_product(on(record.toy), torch.bfloat16, toy=record.toy)
    flop = _FORWARDS * forward_flop(network("cifar", toy=record.toy))
    record.row("cifar share", 100 * speed.images * flop / (ceiling * 1e12))


def cifar_whole(record: Record) -> None:
    """The large network without micro-batches, which once took 79 GiB: not every card has them."""
    try:
        row(record, "cifar whole", sid_speed(record, "cifar", 256, "bfloat16", budget=6))
    except (torch.OutOfMemoryError, UserError) as error:
        record.note(f"the CIFAR network in one micro-batch of 256: {first_line(error)}")


def sid_speed(
    record: Record,
    name: str,
    batch: int,
    precision: TrainingPrecision,
    microbatch: int | None = None,
    compiling: CompileChoice = "off",
    budget: float = 8.0,
) -> Speed:
    """The speed of SiD, from fresh networks."""
    if record.toy:
        batch, microbatch = 4, min(microbatch or 4, 2)
    config = sid_config(name, batch, precision, microbatch or batch)
    denoiser = network(name, toy=record.toy)
    return speed_of(
        lambda: make_sid(denoiser, config, on(record.toy), compiling).step,
        batch,
        record.toy,
        budget,
    )


def teacher_speed(record: Record) -> Speed:
    """The speed of the 64x64 network's own training."""
    batch = 4 if record.toy else 512
    return speed_of(lambda: make_noise_teacher(record, batch).step, batch, record.toy, 8.0)


def make_noise_teacher(record: Record, batch: int) -> TeacherTraining:
    """The 64x64 network's own training, on noise."""
    config = TeacherConfig(
        total_images=10**9, checkpoint_every=10**9, batch=batch, microbatch=batch, lr=1e-3,
        ema_halflife=6000, precision="bfloat16",
    )  # fmt: skip
    shape = layout("64x64", toy=record.toy)
    return make_teacher(shape, config, random_images(shape, 2 * batch), on(record.toy))


def speed_of(
    make: Callable[[], Callable[[int], object]], batch: int, toy: bool, budget: float
) -> Speed:
    """Make a training, let it settle, time its steps, and free it.

    The peak is that of the training's whole life: what a CUDA graph holds is allocated while it is
    captured.
    """
    device = on(toy)
    free(device)
    step, seen = make(), count(0, batch)
    settle(step, seen, 1 if toy else _SETTLED)
    seconds, steps = seconds_per_call(lambda: step(next(seen)), device, budget=budget, toy=toy)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    return Speed(batch / seconds, steps, memory)


def settle(step: Callable[[int], object], seen: Any, steps: int) -> None:
    """Take the first steps, which choose algorithms and capture graphs."""
    for _ in range(steps):
        step(next(seen))


def free(device: torch.device) -> None:
    """Give back what the training before has left, so that the peak is the next one's own."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def steps(record: Record) -> None:
    """Whether steps are replayed, and whether one waits: CUDA raises at the first place of one."""
    batch = 4 if record.toy else 128
    denoiser = network("fashion", toy=record.toy)
    config = sid_config("fashion", batch, "bfloat16", batch // 2)
    sid = make_sid(denoiser, config, on(record.toy))
    for name, training in (("", sid), ("teacher ", make_noise_teacher(record, batch))):
        seen = count(0, batch)
        settle(training.step, seen, 1 if record.toy else _SETTLED)
        where = place_of_a_wait(training.step, next(seen), on(record.toy))
        if record.toy:
            record.note("whether a step waits for the card can be seen on a card only")
            continue
        graphs = training.graphs
        record.row(f"{name}replays", 0 if graphs is None else graphs.replayed)
        record.row(f"{name}waits", int(where is not None), **({"first": where} if where else {}))


def place_of_a_wait(
    step: Callable[[int], object], images_seen: int, device: torch.device
) -> str | None:
    """The line of ours at which a step waits first, or None."""
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        step(images_seen)
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        ours = [one for one in traceback.extract_tb(error.__traceback__) if "distill" in one[0]]
        return f"{ours[-1].filename.rpartition('distill/')[2]}:{ours[-1].lineno}" if ours else "?"
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    return None


def beside_transcription(record: Record) -> None:
    """Float32 beside the algorithm as it reads (tests/compare/transcription.py), same settings."""
    batch = 4 if record.toy else 64
    device = on(record.toy)
    ours = sid_speed(record, "cifar", batch, "float32", budget=9)
    config = sid_config("cifar", batch, "float32", batch)
    settings = Settings(batch=batch, microbatch=batch, lr=config.lr, alpha=config.alpha)
    denoiser = network("cifar", toy=record.toy).to(device)

    def make() -> Callable[[int], object]:
        bend = partial(augment, probability=config.augment)
        plain = Transcription(denoiser, settings, augment=bend)

        def step(images_seen: int) -> object:
            with torch.device(device):  # it names none itself
                return plain.step(images_seen)

        return step

    theirs = speed_of(make, batch, record.toy, 9)
    record.row("float32 ratio", ours.images / theirs.images, ours=ours.images, plain=theirs.images)


@torch.no_grad()
def forward_flop(denoiser: Denoiser) -> float:
    """Floating-point operations of one image's forward pass."""
    counter = FlopCounterMode(display=False)
    with counter:
        denoiser.eval()(torch.zeros(1, *denoiser.config.latent_shape), torch.ones(1))
    return counter.get_total_flops()
