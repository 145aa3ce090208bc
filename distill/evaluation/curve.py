"""The curve of a run: distance against images seen, a straight line in log-log."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from distill.checkpoints import write_atomically
from distill.errors import UserError


@dataclass(frozen=True)
class PowerLaw:
    """distance = factor * images^slope, fitted by least squares of the logarithms.

    Attributes:
        slope: the exponent; negative where the distance falls.
        low: lower end of the slope's 95 % confidence interval (Student's t).
        high: its upper end.
        factor: the distance at one image, an extrapolation.
    """

    slope: float
    low: float
    high: float
    factor: float


def read_curve(run: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a run's images seen and distances; a mark measured twice counts once.

    Raises:
        UserError: the run measured no distance, or its file is damaged.
    """
    file = run / "curve.jsonl"
    if not file.exists():
        raise UserError(f"{file} is missing: 'sid-distill run' writes it unless --features none")
    by_images: dict[int, float] = {}
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        try:
            point = json.loads(line)
            by_images[point["images_seen"]] = point["distance"]
        except (ValueError, KeyError):
            raise UserError(f"{file}, line {number}, is damaged: remove that line") from None
    images = sorted(by_images)
    return np.array(images, float), np.array([by_images[n] for n in images])


def fit_power_law(images: NDArray[np.float64], distances: NDArray[np.float64]) -> PowerLaw:
    """Fit ln distance = ln factor + slope ln images.

    The interval takes the points' errors as independent, which those of neighbouring points of
    one run are not: read it as a lower bound of the uncertainty.

    Raises:
        UserError: fewer than three points.
    """
    if len(images) < 3:
        raise UserError(f"a line with an interval needs three points, the run has {len(images)}")
    fit = stats.linregress(np.log(images), np.log(distances))
    reach = stats.t.ppf(0.975, len(images) - 2) * fit.stderr
    return PowerLaw(
        float(fit.slope),
        float(fit.slope - reach),
        float(fit.slope + reach),
        float(np.exp(fit.intercept)),
    )


def plot_curve(
    path: Path,
    images: NDArray[np.float64],
    distances: NDArray[np.float64],
    law: PowerLaw,
    from_images: float,
    teacher: float | None,
) -> None:
    """Save a log-log picture of the points, the fitted line and the teacher's distance."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log")
    axes.plot(images, distances, "o", color="#1f5fa8", label="one step")
    line = np.array([from_images, images[-1]])
    label = f"slope {law.slope:.2f} (95 %: {law.low:.2f} to {law.high:.2f})"
    axes.plot(line, law.factor * line**law.slope, color="#1f5fa8", label=label)
    if teacher is not None:
        axes.axhline(teacher, color="#b03a2e", linestyle="--", label=f"teacher: {teacher:.2f}")
    axes.set(xlabel="images seen in distillation", ylabel="Fréchet distance")
    axes.grid(which="both", alpha=0.25)
    axes.legend()
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))
