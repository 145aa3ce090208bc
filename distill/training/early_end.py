"""Ending a training before its total: a rule says when enough is learned, a cooldown follows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass
class EarlyEnd:
    """When a training may end before `total_images`, and what was decided so far.

    The rule is asked at each point of the curve, while the learning rates are at their full
    values. What it decides is part of the run's state, so that a resumed run ends where the one
    that was not stopped would have ended.

    Attributes:
        rule: looks at what was measured up to so many images; says why the training may end, or
            returns None. Of several processes the first one is asked.
        cooldown: images that follow, over which the learning rates fall to 0.
        since: images seen when the rule decided; None: it has not.
        why: what it said.
    """

    rule: Callable[[int], str | None]
    cooldown: int
    since: int | None = None
    why: str = ""

    def end(self, total: int) -> int:
        """Images after which the training ends: `total`, or fewer."""
        return total if self.since is None else min(total, self.since + self.cooldown)

    def is_open(self, seen: int, total: int) -> bool:
        """Whether the rule may still bring the end forward."""
        return self.since is None and seen + self.cooldown < total

    def state(self) -> dict[str, Any]:
        """What a later `load_state` needs."""
        return {"since": self.since, "why": self.why}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.since, self.why = state["since"], state["why"]
