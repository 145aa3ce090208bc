"""`sid-distill analyze`."""

from pathlib import Path
from typing import Annotated

import typer


def analyze(
    run: Annotated[Path, typer.Argument(help="A distillation's folder.")],
    teacher: Annotated[
        Path | None,
        typer.Option(help="Its teacher, evaluated: drawn as a line.", show_default=False),
    ] = None,
    from_images: Annotated[
        int, typer.Option(min=1, help="Fit the line from here on, past the first drop.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="The picture. Left out: RUN/curve.png.", show_default=False)
    ] = None,
) -> None:
    """Draw a run's distance against images seen in log-log, and fit its slope."""
    from distill.evaluation.curve import fit_power_law, plot_curve, read_curve
    from distill.evaluation.measurement import load_measurement

    images, distances = read_curve(run)
    late = images >= from_images
    law = fit_power_law(images[late], distances[late])
    line = None if teacher is None else load_measurement(teacher, "teacher").distance
    picture = out or run / "curve.png"
    plot_curve(picture, images, distances, law, images[late][0], line)
    for count, distance in zip(images, distances, strict=True):
        typer.echo(f"{count:>10.0f} images  {distance:8.3f}")
    typer.echo(f"slope {law.slope:.3f}, 95 % interval {law.low:.3f} to {law.high:.3f}: {picture}")
