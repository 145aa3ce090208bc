"""When a distillation ends: `sid-distill run --stop`."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.errors import UserError

if TYPE_CHECKING:
    from distill.training.distributed import DistributedContext
    from distill.training.early_end import EarlyEnd
    from distill.training_config import DistillationConfig


class Stop(StrEnum):
    """When a run ends."""

    auto = "auto"
    images = "images"


StopOption = Annotated[
    Stop | None,
    typer.Option(
        help="auto: where the distance's trend promises less than 10 % for a doubling of the "
        "images (the recipe's stop_gain, if it has one), at the upper end of its interval, the "
        "cooldown begins, and the run ends after it; --images is the most. images: at --images. "
        "Left out: as the run that is resumed; for a new one auto if the recipe has a stop_gain.",
        show_default=False,
    ),
]


def with_stop(
    config: "DistillationConfig",
    stop: Stop | None,
    features: str,
    out: Path,
    context: "DistributedContext",
) -> "DistillationConfig":
    """Choose how a run ends; one that is resumed keeps its way unless another is named.

    Args:
        config: of the run, with the recipe's `stop_gain`.
        stop: what --stop said.
        features: the feature extractor's name, "none" for no distance.
        out: the run's folder. Process 0 looks into it, for all.
        context: the processes of the run.

    Raises:
        UserError: a run without a distance cannot end by it.
    """
    from distill.analysis.trend import DEFAULT_GAIN
    from distill.checkpoints import load_settings

    state, kept = out / "state.pt", None
    if context.is_main and state.is_file():
        kept = {"stop_gain": load_settings(state).get("stop_gain")}
    begun = context.broadcast_from_main(kept)
    if stop is Stop.images:
        gain = None
    elif stop is Stop.auto:
        gain = config.stop_gain or (begun or {}).get("stop_gain") or DEFAULT_GAIN
    else:
        gain = config.stop_gain if begun is None else begun["stop_gain"]
    if gain is not None and features == "none":
        raise UserError(
            "--stop auto looks at the distance along the way, and this run measures none: name a "
            "feature extractor with --features, or say --stop images"
        )
    return config.model_copy(update={"stop_gain": gain})


def early_end(config: "DistillationConfig", out: Path) -> "EarlyEnd | None":
    """What ends a run early by its own curve; None for a run that ends at `total_images`.

    Raises:
        UserError: the curve that the folder holds so far is damaged.
    """
    from distill.analysis.curve import read_curve
    from distill.analysis.trend import MIN_HALFLIVES, explain_end
    from distill.training.early_end import EarlyEnd

    gain, not_before = config.stop_gain, MIN_HALFLIVES * config.ema_halflife
    if gain is None:
        return None
    if (out / "curve.jsonl").exists():  # said now, not after hours
        read_curve(out)

    def rule(images_seen: int) -> str | None:
        # A resumed run measures again what it had measured after its last checkpoint.
        return explain_end(read_curve(out).until(images_seen), gain, not_before)

    return EarlyEnd(rule, config.cooldown)
