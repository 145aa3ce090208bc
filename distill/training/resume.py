"""Going on with a training from the state that its folder holds, or refusing to."""

import json
import sys
from pathlib import Path
from typing import Any

from distill.checkpoints import load_state
from distill.errors import UserError, first_line
from distill.training.early_end import EarlyEnd
from distill.training.protocol import Training
from distill.training_config import LoopConfig, current_precision

# Settings that a state holds and that a resumed run may change, for it may be given another end.
_END_RULES = {"stop_gain"}


def shared_settings(training: Training) -> dict[str, Any]:
    """What a resumed run must share."""
    free = {"total_images", "cooldown", "checkpoint_every"}
    return training.config.model_dump(mode="json", exclude=free) | training.identity()


def resume(
    training: Training, folder: Path, settings: dict[str, Any], early: EarlyEnd | None
) -> int:
    """Load the folder's state, if it holds one; return the images seen.

    Args:
        training: what goes on.
        folder: of the run.
        settings: `shared_settings` of it.
        early: may have brought the end forward.

    Raises:
        UserError: the state is damaged, of another version or of other settings; or this process
            does not see it.
    """
    state_file = folder / "state.pt"
    seen = 0
    if state_file.exists():
        state = load_state(state_file)
        before = _defaults(training.config, settings) | json.loads(state["settings"])
        before["precision"] = current_precision(before["precision"])
        _check_same_run(folder, before, settings)
        try:
            training.load_state(state["training"])
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"{state_file} is of another version of sid-distill ({first_line(error)}): delete "
                "it to start anew"
            ) from None
        seen = state["images_seen"]
        _resume_end(training, state, before, settings, early)
    if seen != training.context.broadcast_from_main(seen):
        raise UserError(
            f"process {training.context.rank} does not see the {state_file} of process 0: all "
            "nodes need the same --out, on a file system that they share"
        )
    return seen


def _resume_end(
    training: Training,
    state: dict[str, Any],
    before: dict[str, Any],
    settings: dict[str, Any],
    early: EarlyEnd | None,
) -> None:
    """Keep the early end that a state holds, unless the run is now to end by another rule."""
    decided = state.get("early_end")
    if decided is None or decided["since"] is None:
        return
    if early is not None and all(before.get(name) == settings.get(name) for name in _END_RULES):
        early.load_state(decided)
        training.end = early.end(training.config.total_images)
    elif training.context.is_main:
        print(
            f"note: this run was to end early, since {decided['since']} images ({decided['why']}); "
            "it is given another rule now, and its learning rates go back to their full values "
            "where no cooldown has begun",
            file=sys.stderr,
        )


def _defaults(config: LoopConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """What a run of today's `settings` had that began before one of them existed."""
    fields = type(config).model_fields
    return {
        name: fields[name].default
        for name in settings
        if name in fields and not fields[name].is_required()
    }


def _check_same_run(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run under other settings, naming those that differ."""
    compared = sorted((before | now).keys() - _END_RULES)
    differing = [name for name in compared if before.get(name) != now.get(name)]
    if not differing:
        return
    another = f"with another {', '.join(differing)}"
    methods = [settings.get("method") for settings in (before, now)]
    if "method" in differing and all(methods):  # whose settings differ too, as they must
        another = "by the method {}, not {}".format(*methods)
    raise UserError(
        f"{folder} holds a run {another}: resume it with its own, or name another folder with --out"
    )
