"""`sid-distill analyze`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill.commands.options import AutoencoderOption, DeviceOption, chosen_device
from distill.errors import UserError

if TYPE_CHECKING:
    from distill.analysis.report import Options


def analyze(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A distillation's folder; or several, compared side by side."),
    ],
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="The teacher's file. Left out: the one that the run wrote down.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The report, a .html (its numbers beside it as .json); or a .png: the curve "
            "alone. Left out: RUN/report.html, of several RUN/comparison.html in the first.",
            show_default=False,
        ),
    ] = None,
    from_images: Annotated[
        int, typer.Option(min=1, help="Fit the line from here on, past the first drop.")
    ] = 1,
    images: Annotated[
        int, typer.Option(min=2, help="Generated images that the score gap is measured on.")
    ] = 256,
    images_per_class: Annotated[
        int,
        typer.Option(
            "--pictures",
            min=0,
            help="Images per class that teacher (35 evaluations each) and generator draw; 0: none.",
        ),
    ] = 50,
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature extractor to compare their images by; 'none' compares pixels. Left "
            "out: the run's, or a shipped one that fits.",
            show_default=False,
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="A folder for each plot as a PNG of its own.", show_default=False),
    ] = None,
    autoencoder: AutoencoderOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Report how far a run came, and where its generator falls short of the teacher.

    One HTML page: the distance against images seen with its fitted slope; of an adversarial run
    what its discriminator tells apart; the score gap by noise level, and how well the fake score
    knows the generator; the teacher's images beside the generator's, class by class; samples along
    the way. Several runs: their curves, settings, samples and score gaps. What a folder lacks is
    left out and named.
    """
    from distill.analysis.plotting import style
    from distill.analysis.report import Options

    for run in runs:
        if not run.is_dir():
            raise UserError(f"no run at {run}: expected the folder of 'sid-distill run --out'")
    target = out or runs[0] / ("report.html" if len(runs) == 1 else "comparison.html")
    if target.suffix not in (".html", ".png"):
        raise UserError(f"--out {target}: expected a .html (the report) or a .png (the curve)")
    options = Options(
        teacher, features, from_images, images, images_per_class, chosen_device(device), plots,
        autoencoder,
    )  # fmt: skip
    with style():
        if target.suffix == ".png":
            _draw_curve(runs, target, options.teacher, from_images)
        else:
            _write(runs, target, options)


def _write(runs: list[Path], target: Path, options: "Options") -> None:
    from distill.analysis.comparison import compare_runs
    from distill.analysis.run_report import analyze_run
    from distill.analysis.write import write_report

    names = ", ".join(str(run) for run in runs)
    if len(runs) == 1:
        report = analyze_run(runs[0], options)
        seen = report.numbers.get("images_seen")
        title = runs[0].resolve().name
        subtitle = f"{runs[0]}" + (f", {seen:,} images seen" if seen else "")
    else:
        report = compare_runs(runs, options)
        title, subtitle = f"{len(runs)} runs side by side", names
    numbers = write_report(target, title, subtitle, report)
    for sentence in report.findings:
        typer.echo(f"- {sentence}")
    for reason in report.left_out:
        typer.echo(f"left out: {reason}")
    typer.echo(f"{target}, numbers in {numbers}")


def _draw_curve(runs: list[Path], target: Path, teacher: Path | None, from_images: int) -> None:
    from distill.analysis.curve import fit_power_law, read_curve
    from distill.analysis.curve_plots import plot_curve
    from distill.analysis.plotting import save_png
    from distill.evaluation.measurement import load_measurement

    if len(runs) > 1:
        raise UserError("a .png shows one run's curve: several are compared in a .html")
    curve = read_curve(runs[0])
    late = curve.since(from_images)
    law = fit_power_law(late.images, late.distances)
    line = None if teacher is None else load_measurement(teacher, "teacher").distance
    save_png(target, plot_curve(curve, law, float(late.images[0]), line))
    for count, distance in zip(curve.images, curve.distances, strict=True):
        typer.echo(f"{count:>10.0f} images  {distance:8.3f}")
    typer.echo(f"slope {law.slope:.3f}, 95 % interval {law.low:.3f} to {law.high:.3f}: {target}")
