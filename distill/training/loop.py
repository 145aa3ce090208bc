"""The loop around every training: resume, step, log, evaluate, checkpoint, stop cleanly."""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from distill.checkpoints import save_network, save_state
from distill.data.images import save_grid, to_pixels
from distill.errors import UserError
from distill.networks import Denoiser
from distill.networks.latent_space import LatentDecoder
from distill.training.divergence import (
    Tally,
    diagnose_images,
    diagnose_steps,
    diagnose_weights,
    tallies,
)
from distill.training.early_end import EarlyEnd
from distill.training.folder_lock import locked
from distill.training.learner import full_state_dict
from distill.training.protocol import Training
from distill.training.resume import resume, shared_settings
from distill.training.stop_signals import stop_requested
from distill.training_config import LoopConfig
from service.bundle import write_atomically

LOG_EVERY = 50  # steps between two points of the TensorBoard curves
MARKS = 500 * math.sqrt(2) ** np.arange(64)  # images seen at which a run is measured

Evaluate = Callable[[Denoiser], dict[str, Any]]

DECODED_SAMPLES = 100  # of a sheet: to decode one takes longer than to draw it
IMAGES_CHECKED = 16  # before a checkpoint: of several seeds, and of two classes where there are


def train(
    training: Training,
    folder: Path,
    metadata: dict[str, Any],
    evaluate: Evaluate | None = None,
    progress: bool = True,
    origin: dict[str, Any] | None = None,
    early: EarlyEnd | None = None,
    decoder: LatentDecoder | None = None,
) -> int:
    """Train until `config.total_images`, an earlier end, or until SIGINT or SIGTERM asks to stop.

    `folder` receives state.pt (to resume from), network.safetensors (the averaged weights),
    events of TensorBoard, and at images seen that grow by sqrt(2): snapshots/, samples/ and a
    line of curve.jsonl with what `evaluate` measured. A folder that holds a state is resumed:
    every random draw is a function of (seed, images seen), so that the resumed run is the same
    run. A run resumed under another configuration is refused, except that it may be given
    another end: more images, a cooldown from where it is, or another rule that ends it early.

    A step without a finite gradient is skipped, and shown; a run that has diverged
    (`distill.training.divergence`) ends with an error, and what the folder holds stays as it is.

    Of several processes all must call this, with one folder that all of them see; process 0
    writes.

    Args:
        training: what to step.
        folder: where the run lives.
        metadata: written into the header of each network.
        evaluate: measures a network, say by a Fréchet distance.
        progress: show a progress bar.
        origin: what the run was started from, for those who analyse it: written to run.json, as
            all else only once the folder is ours and holds no other run.
        early: may bring the end forward, see there; it needs `evaluate`.
        decoder: makes the pixels of samples/ of what a network of latents draws.

    Returns:
        Images seen, less than `training.end` when asked to stop.

    Raises:
        UserError: the folder holds another configuration's run or a damaged state, another
            process trains in it, or the training diverges.
    """
    if not training.context.is_main:
        return _train(training, folder, metadata, evaluate, False, None, early, decoder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        try:
            return _train(training, folder, metadata, evaluate, progress, origin, early, decoder)
        except OSError as error:
            if error.errno and error.filename is None:  # of a curve: write() names no file
                raise OSError(error.errno, error.strerror, str(folder)) from error
            raise


def _train(
    training: Training,
    folder: Path,
    metadata: dict[str, Any],
    evaluate: Evaluate | None,
    progress: bool,
    origin: dict[str, Any] | None,
    early: EarlyEnd | None,
    decoder: LatentDecoder | None,
) -> int:
    config, context = training.config, training.context
    settings = shared_settings(training)
    seen = kept = resume(training, folder, settings, early)
    measured_at = None
    if origin is not None:
        text = json.dumps(origin, indent=2) + "\n"
        write_atomically(folder / "run.json", lambda file: file.write_text(text))

    def stop_if(fault: str | None) -> None:
        """End the run, in all processes, if one of them found a fault."""
        if not context.any(fault is not None):
            return
        outcome = (
            f"{folder} keeps the network of {kept} images" if kept else "no network was written"
        )
        raise UserError(
            f"{fault or 'another process found a fault'}: the training has diverged by {seen} "
            f"images, and would again with these settings. {outcome}; start in another folder with "
            f"a smaller {_rates(config)}"
        )

    def look(shown: dict[str, Tally]) -> dict[str, Tally]:
        """Show what was left out since `shown`; end a run that does not learn any more."""
        counted = tallies(training.learners, config.batch)
        for name, tally in counted.items():
            if tally == shown.get(name, Tally(0, 0, 0)) or not context.is_main:
                continue
            bar.set_postfix({"skipped": sum(t.skipped for t in counted.values())})
            bar.write(
                f"{seen:>9} images: {name}: {tally.skipped} steps were skipped and "
                f"{tally.samples} samples left out so far, for they were not finite"
            )
        stop_if(diagnose_steps(counted, (seen - began_at) // config.batch))
        return counted

    def checkpoint() -> None:
        nonlocal kept
        networks = [training.ema, *(learner.network for learner in training.learners.values())]
        stop_if(diagnose_weights(networks))
        stop_if(diagnose_images(training.samples(IMAGES_CHECKED)))
        # The state last: a kill in between makes a resumed run write the network again.
        weights = full_state_dict(training.ema)
        state = {
            "settings": json.dumps(settings),
            "images_seen": seen,
            "training": training.state(),
        }
        if early is not None:
            state["early_end"] = early.state()
        if context.is_main:
            header = metadata | {"images_seen": seen}
            save_network(folder / "network.safetensors", training.ema, header, weights)
            save_state(folder / "state.pt", state)
        kept = seen

    def measure() -> None:
        nonlocal measured_at
        measured_at = seen
        kimg = f"{seen / 1000:09.1f}"
        weights = full_state_dict(training.ema)
        images = training.samples(None if decoder is None else DECODED_SAMPLES)
        stop_if(diagnose_images(images))
        measured = {} if evaluate is None else evaluate(training.ema)
        if not context.is_main:
            return
        header = metadata | {"images_seen": seen}
        save_network(folder / "snapshots" / f"{kimg}.safetensors", training.ema, header, weights)
        pixels = to_pixels(images) if decoder is None else decoder.to(images.device)(images)
        save_grid(folder / "samples" / f"{kimg}.png", pixels)
        if measured:
            for name, value in measured.items():
                if isinstance(value, float):
                    events.add_scalar(f"evaluation/{name}", value, seen)
            with (folder / "curve.jsonl").open("a") as file:
                file.write(json.dumps({"images_seen": seen, **measured}) + "\n")
            formatted = (f"{k} {v:.4g}" for k, v in measured.items() if isinstance(v, float))
            bar.write(f"{seen:>9} images: {', '.join(formatted)}")

    def look_at_curve() -> None:
        """Bring the end forward, in all processes, if the rule says so."""
        if early is None or not early.is_open(seen, config.total_images):
            return
        why = context.broadcast_from_main(early.rule(seen) if context.is_main else None)
        if why is None:
            return
        early.since, early.why = seen, why
        training.end = bar.total = early.end(config.total_images)
        if context.is_main:
            bar.write(f"{seen:>9} images: {why}: it ends at {training.end}")

    # What is drawn of it stays only if it comes to its end: the last line says where a run stopped.
    bar = tqdm(
        total=training.end,
        initial=min(seen, training.end),
        unit="img",
        unit_scale=True,
        leave=False,
        disable=not progress,
    )
    with (
        _events(folder if context.is_main else None, seen) as events,
        bar,
        stop_requested(insists=context.size == 1) as stop,
    ):
        began, began_at = time.monotonic(), seen
        shown: dict[str, Tally] = {}
        due = False
        while seen < training.end and not context.any(stop()):
            scalars = training.step(seen)
            before, seen = seen, seen + config.batch
            # No batch ends beyond the whole, of which tqdm would draw neither bar nor percentage.
            bar.update(min(seen, training.end) - before)
            if seen // config.batch % LOG_EVERY == 0:
                for name, value in context.mean(scalars).items():
                    events.add_scalar(name, value, seen)
                rate = (seen - began_at) / (time.monotonic() - began)
                events.add_scalar("images per second", rate, seen)
                shown = look(shown)
                for name, tally in shown.items():
                    events.add_scalar(f"skipped steps/{name}", tally.skipped, seen)
                    events.add_scalar(f"samples left out/{name}", tally.samples, seen)
            ended = seen >= training.end  # measured after the loop, once
            if not ended and _crosses(before, seen, MARKS):
                measure()
                look_at_curve()
            due |= before // config.checkpoint_every != seen // config.checkpoint_every
            if due:
                shown = look(shown)
                # While steps are skipped nobody knows whether these weights are good.
                if not any(tally.consecutive_skips for tally in shown.values()):
                    checkpoint()
                    due = False
        if seen >= training.end:
            bar.refresh()  # at 100 % while the last is measured
        if seen != began_at:
            look(shown)
            if seen >= training.end and measured_at != seen:
                measure()
            checkpoint()
        bar.leave = seen >= training.end
    return seen


def _rates(config: LoopConfig) -> str:
    """The learning rates to lower, as options."""
    fake = getattr(config, "fake_lr", None)  # a distillation's own
    second = "" if fake is None else f" and --fake-lr than {fake:g}"
    return f"--lr than {config.lr:g}{second}"


@contextmanager
def _events(folder: Path | None, seen: int) -> Iterator["SummaryWriter | _NoEvents"]:
    """TensorBoard's curves in a folder, going on after `seen` images; nothing without one."""
    if folder is None:
        yield _NoEvents()
        return
    with SummaryWriter(str(folder), purge_step=seen) as events:
        yield events


class _NoEvents:
    """What a process that writes no files logs to."""

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Do nothing."""


def _crosses(before: int, after: int, marks: np.ndarray) -> bool:
    return bool(((marks > before) & (marks <= after)).any())
