"""What a run logged of its steps, as TensorBoard shows it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distill.analysis.curve import Array

ACCURACIES = {"real": "discriminator/accuracy on real", "fake": "discriminator/accuracy on fake"}
CROSS_ENTROPY = "discriminator/cross-entropy"
# The parts of the generator's loss, which add up to what it descends but for common factors.
PARTS = {
    "score identity": "loss/generator: score identity",
    "- alpha x gap": "loss/generator: - alpha x gap",
    "adversarial": "loss/generator: adversarial",
}


@dataclass(frozen=True)
class Series:
    """One scalar along the way.

    Attributes:
        images: images seen [P].
        values: of the step that ended there [P].
    """

    images: Array
    values: Array

    @property
    def late(self) -> float:
        """The mean over the last fifth of the points: single steps are noisy."""
        return float(self.values[-max(1, len(self.values) // 5) :].mean())


def read_scalars(run: Path) -> dict[str, Series]:
    """Read what a run's folder holds of TensorBoard's curves, by name; empty where it has none.

    A run that went on from an older state counts what it did again once, the last time.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(run.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(run)).Reload()
    read = {}
    for name in events.Tags()["scalars"]:
        points = events.Scalars(name)
        images = np.array([point.step for point in points], dtype=np.float64)
        read[name] = Series(images, np.array([point.value for point in points]))
    return read
