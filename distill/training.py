"""The loop around every training: resume, step, log, evaluate, checkpoint, stop cleanly."""

import fcntl
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distill.checkpoints import load_state, save_network, save_state
from distill.errors import UserError
from distill.images import save_grid
from distill.networks import Denoiser
from distill.recipe import LoopConfig

LOG_EVERY = 50  # steps between two points of the TensorBoard curves


class Training(Protocol):
    """What the loop drives: a teacher's training or a distillation."""

    ema: Denoiser

    @property
    def config(self) -> LoopConfig:
        """How long, how fast, in what batches."""

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share besides its configuration, as JSON values."""

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """Take one optimiser step; return scalars to log."""

    def state(self) -> dict[str, Any]:
        """Return all that a later `load_state` needs to go on to the bit."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    def samples(self) -> Tensor:
        """Draw a fixed grid of pictures with the averaged weights: uint8 [rows*cols, H, W, C]."""


Evaluate = Callable[[Denoiser], dict[str, float]]


def train(
    training: Training,
    folder: Path,
    facts: dict[str, Any],
    evaluate: Evaluate | None = None,
    progress: bool = True,
) -> int:
    """Train until `config.total_images`, or until SIGINT or SIGTERM asks to stop.

    `folder` receives state.pt (to resume from), network.safetensors (the averaged weights),
    events of TensorBoard, and at images seen that grow by sqrt(2): snapshots/, samples/ and a
    line of curve.jsonl with what `evaluate` measured. A folder that holds a state is resumed:
    every random draw is a function of (seed, images seen), so that the resumed run is the same
    run. A run resumed under another configuration is refused, except that it may be given
    another end: more images, or a cooldown from where it is.

    Args:
        training: what to step.
        folder: where the run lives.
        facts: written into the header of each network.
        evaluate: measures a network, say by a Fréchet distance.
        progress: show a progress bar.

    Returns:
        Images seen, less than the total when asked to stop.

    Raises:
        UserError: the folder holds another configuration's run or a damaged state, or another
            process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        return _train(training, folder, facts, evaluate, progress)


def _train(
    training: Training,
    folder: Path,
    facts: dict[str, Any],
    evaluate: Evaluate | None,
    progress: bool,
) -> int:
    config = training.config
    state_file = folder / "state.pt"
    settings = config.model_dump(
        mode="json", exclude={"total_images", "cooldown", "checkpoint_every"}
    )
    settings |= training.identity()
    seen = 0
    if state_file.exists():
        state = load_state(state_file)
        _check_same_run(folder, json.loads(state["settings"]), settings)
        training.load_state(state["training"])
        seen = state["images_seen"]

    def checkpoint() -> None:
        # The state last: a kill in between makes a resumed run write the network again.
        save_network(folder / "network.safetensors", training.ema, facts | {"images_seen": seen})
        save_state(
            state_file,
            {
                "settings": json.dumps(settings),
                "images_seen": seen,
                "training": training.state(),
            },
        )

    def measure() -> None:
        kimg = f"{seen / 1000:09.1f}"
        save_network(
            folder / "snapshots" / f"{kimg}.safetensors",
            training.ema,
            facts | {"images_seen": seen},
        )
        save_grid(folder / "samples" / f"{kimg}.png", training.samples())
        if evaluate is not None:
            measured = evaluate(training.ema)
            for name, value in measured.items():
                events.add_scalar(f"evaluation/{name}", value, seen)
            with (folder / "curve.jsonl").open("a") as file:
                file.write(json.dumps({"images_seen": seen, **measured}) + "\n")
            bar.write(
                f"{seen:>9} images: " + ", ".join(f"{k} {v:.4g}" for k, v in measured.items())
            )

    bar = tqdm(
        total=config.total_images, initial=seen, unit="img", unit_scale=True, disable=not progress
    )
    with SummaryWriter(str(folder), purge_step=seen) as events, bar, _asked_to_stop() as stop:
        began, began_at = time.monotonic(), seen
        while seen < config.total_images and not stop():
            torch.manual_seed(step_seed(config.seed, seen))
            scalars = training.step(seen)
            before, seen = seen, seen + config.batch
            bar.update(config.batch)
            if seen // config.batch % LOG_EVERY == 0:
                for name, value in scalars.items():
                    events.add_scalar(name, value.item(), seen)
                rate = (seen - began_at) / (time.monotonic() - began)
                events.add_scalar("images per second", rate, seen)
            if _crosses(before, seen, 500 * math.sqrt(2) ** np.arange(64)):
                measure()
            if before // config.checkpoint_every != seen // config.checkpoint_every:
                checkpoint()
        if seen != began_at:
            if seen >= config.total_images:
                measure()
            checkpoint()
    return seen


def _check_same_run(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run under other settings, naming those that differ."""
    differing = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
    if differing:
        raise UserError(
            f"{folder} holds a run with another {', '.join(differing)}: resume it with its own, "
            "or name another folder with --out"
        )


def _crosses(before: int, after: int, marks: np.ndarray) -> bool:
    return bool(((marks > before) & (marks <= after)).any())


def step_seed(seed: int, images_seen: int) -> int:
    """Return the 63-bit seed of one step's random draws, a hash of its arguments."""
    return int(np.random.SeedSequence([seed, images_seen]).generate_state(1, np.uint64)[0]) >> 1


def channels_last(network: Denoiser) -> Denoiser:
    """Store the weights so that convolutions run on NHWC memory, the faster layout."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@torch.no_grad()
def update_ema(ema: Denoiser, network: Denoiser, beta: float) -> None:
    """ema <- beta ema + (1 - beta) network, over parameters."""
    pairs = list(zip(ema.parameters(), network.parameters(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], 1 - beta)


def ema_beta(batch: int, halflife: float, images_seen: int) -> float:
    """0.5^(batch / halflife), the half-life at most 5 % of the images seen (facts, section 2)."""
    return float(0.5 ** (batch / max(min(halflife, 0.05 * images_seen), 1e-8)))


@torch.no_grad()
def clean_gradients(network: Denoiser) -> None:
    """Replace NaN by 0 and infinities by +-1e5 in every gradient (facts, section 2)."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            torch.nan_to_num(parameter.grad, nan=0, posinf=1e5, neginf=-1e5, out=parameter.grad)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the lock dies with the process, however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"another process trains in {folder}: wait for it or stop it, or name another "
                "folder with --out"
            ) from None
        yield


@contextmanager
def _asked_to_stop() -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether SIGINT or SIGTERM came; a second one kills."""
    received: list[int] = []
    previous: dict[int, Any] = {}

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        previous[number] = signal.signal(number, note)
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
