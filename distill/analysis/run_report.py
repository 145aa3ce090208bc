"""The report of one run: sections with plots and sentences, and the numbers behind them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from distill.analysis import adversarial_plots, findings, image_plots, probe_plots
from distill.analysis.curve import Curve, read_curve
from distill.analysis.curve_plots import plot_curve, plot_variety
from distill.analysis.paired_images import compare_classes, draw_paired_images
from distill.analysis.report import (
    Options,
    Report,
    chosen_extractor,
    fitted,
    numbers,
    on_device,
    probe_run,
    teacher_distance,
)
from distill.analysis.run_folder import (
    Networks,
    explain_missing_networks,
    load_networks,
    teacher_file,
)
from distill.analysis.scalars import ACCURACIES, CROSS_ENTROPY, PARTS, read_scalars
from distill.analysis.trend import Trend, describe_trend, recent_trend
from distill.errors import UserError
from distill.evaluation.precision_recall import IMAGES_ALONG_A_RUN


def analyze_run(folder: Path, options: Options) -> Report:
    """Look at one run's folder, at all that is there.

    A part whose files are missing is left out with the reason; a file that is there but damaged,
    or a teacher that is not the run's, is an error.

    Raises:
        UserError: see above; or nothing at all is there to report.
    """
    report = Report(options)
    teacher = teacher_file(folder, options.teacher)
    _optional(report, "Distance", lambda: _add_curve(report, folder, teacher))
    _add_discriminator(report, folder)
    if reason := explain_missing_networks(folder, teacher):
        report.left_out.append(f"Score gap and classes: {reason}.")
    else:
        assert teacher is not None
        networks = on_device(load_networks(folder, teacher, options.autoencoder), options.device)
        report.numbers["settings"] = networks.settings
        report.numbers["images_seen"] = networks.images_seen
        _add_probe(report, networks)
        _add_images(report, networks, folder)
    _add_samples(report, folder)
    if not report.sections:
        raise UserError(f"{folder} holds nothing to analyse: {' '.join(report.left_out)}")
    report.numbers |= {"findings": report.findings, "left_out": report.left_out}
    return report


def _optional(report: Report, what: str, add: Callable[[], None]) -> None:
    """Add a part, or say why it is left out."""
    try:
        add()
    except UserError as error:
        report.left_out.append(f"{what}: {error}.")


def _add_curve(report: Report, folder: Path, teacher: Path | None) -> None:
    curve = read_curve(folder)
    law, no_law = fitted(curve, report.options.from_images)
    distance, no_teacher = teacher_distance(teacher, curve.features)
    trend, no_trend = _trend(curve)
    for what, reason in (
        ("The fitted slope", no_law),
        ("What more training would buy", no_trend),
        ("The teacher's distance", no_teacher),
    ):
        if reason:
            report.left_out.append(f"{what}: {reason}.")
    sentences = findings.describe_curve(curve, law, distance)
    if trend is not None:
        sentences.append(describe_trend(trend))
    section = report.section("Distance against images seen", sentences)
    report.plot(
        section,
        "curve",
        plot_curve(curve, law, report.options.from_images, distance),
        "Both axes are logarithmic: a power law is a straight line. The interval takes the points' "
        "errors as independent, which those of one run are not: it is a lower bound of the "
        "uncertainty.",
    )
    report.numbers["curve"] = {
        "features": curve.features,
        "images_seen": curve.images.tolist(),
        "distance": curve.distances.tolist(),
        "accuracy": numbers(curve.accuracies),
        "precision": numbers(curve.precisions),
        "recall": numbers(curve.recalls),
        "rate_share": numbers(curve.rate_shares),
        "slope": None if law is None else [law.slope, law.low, law.high],
        "fitted_from_images": report.options.from_images,
        "gain_of_a_doubling": None if trend is None else [trend.gain, trend.low, trend.high],
        "teacher_distance": distance,
    }
    if np.isfinite(curve.recalls).any():
        section = report.section("Precision and recall", findings.describe_variety(curve))
        report.plot(
            section,
            "precision-recall",
            plot_variety(curve),
            f"Over {IMAGES_ALONG_A_RUN:,} generated images and as many real ones: both depend on "
            "these numbers, so they do not compare with those of 'evaluate'. Precision: do the "
            "images look real? Recall: is everything real drawn?",
        )


def _trend(curve: Curve) -> tuple[Trend | None, str | None]:
    """What the last points promise; or None and why nobody knows."""
    try:
        return recent_trend(curve), None
    except UserError as error:
        return None, str(error)


def _add_discriminator(report: Report, folder: Path) -> None:
    """What an adversarial run logged of it; nothing for a run without a discriminator."""
    scalars = read_scalars(folder)
    if not {*ACCURACIES.values(), CROSS_ENTROPY} <= scalars.keys():
        return
    section = report.section(
        "What the discriminator tells apart", findings.describe_discriminator(scalars)
    )
    report.plot(
        section,
        "discriminator",
        adversarial_plots.plot_discriminator(scalars),
        "Single steps. Left: the share of the discriminator's logits with the right sign, of noisy "
        "images; at 0.5 on both it cannot tell them apart, at 1 the generator has nothing to learn "
        "from it. Right: the parts of the generator's loss, an element of an image; they are "
        "weighed against each other as they stand, and their sum says nothing of convergence.",
    )
    report.numbers["discriminator"] = {
        name: {"images_seen": scalars[name].images.tolist(), "value": numbers(scalars[name].values)}
        for name in (*ACCURACIES.values(), CROSS_ENTROPY, *PARTS.values())
        if name in scalars
    }


def _add_probe(report: Report, networks: Networks) -> None:
    probe = probe_run(networks, report.options.images, report.options.device)
    levels = probe.levels
    outside = "" if levels.trained.all() else " Shaded: above t_max, where training never looks."
    section = report.section("Where teacher and generator disagree", findings.describe_gap(probe))
    report.plot(
        section,
        "score-gap",
        probe_plots.plot_gap(probe),
        f"{report.options.images} of the generator's images. Left: the score gap, 0 where they "
        "are to the fake score what the data's are to the teacher; the points lie at training's "
        "own density. Right: the lower, the better a network knows these images; the fake score "
        f"should lie below the teacher.{outside}",
    )
    report.numbers["noise_levels"] = [
        {
            "sigma": float(sigma),
            "trained": bool(levels.trained[i]),
            "gap": float(probe.gap[i].mean()),
            "fake_loss": float(probe.fake_loss[i].mean()),
            "teacher_loss": float(probe.teacher_loss[i].mean()),
        }
        for i, sigma in enumerate(levels.sigmas)
    ]


def _add_images(report: Report, networks: Networks, folder: Path) -> None:
    if not report.options.images_per_class:
        report.left_out.append("Teacher's and generator's images: --pictures is 0.")
        return
    names = networks.classes or ["all"]
    extractor, reason = chosen_extractor(folder, networks, report.options)
    if reason:
        report.left_out.append(f"Features to compare images by, so pixels serve: {reason}.")
    count = report.options.images_per_class * len(names)
    images = draw_paired_images(networks, count, report.options.device)
    comparison = compare_classes(images, extractor, len(networks.classes))
    steps = networks.settings["steps"]
    section = report.section(
        "Where the student falls short of its teacher", findings.describe_classes(comparison, names)
    )
    report.plot(
        section,
        "classes",
        image_plots.plot_classes(comparison, names),
        f"{report.options.images_per_class} images per class of each, the same seeds; the teacher "
        f"by Heun's sampler in 35 evaluations, the generator in "
        f"{'one' if steps == 1 else steps}. Variety: the spread of "
        f"features over {comparison.features}. With few images these are rough.",
    )
    strip = image_plots.pair_strip(images, np.arange(min(20, count)))
    caption = "Teacher above, generator below, the same seeds: the first seeds, unchosen."
    section.images([(image_plots.png_uri(strip, 2), caption)])
    report.numbers["classes"] = {
        "features": comparison.features,
        "images_per_class": report.options.images_per_class,
        "names": names,
        "teacher_accuracy": numbers(comparison.teacher_accuracy),
        "generator_accuracy": numbers(comparison.generator_accuracy),
        "variety": numbers(comparison.variety),
    }


def _add_samples(report: Report, folder: Path) -> None:
    """The sample grids of the beginning, the middle (of their number) and the end."""
    files = sorted((folder / "samples").glob("*.png"))
    if not files:
        report.left_out.append(f"Samples: {folder / 'samples'} holds none.")
        return
    chosen = sorted({0, len(files) // 2, len(files) - 1})
    section = report.section("Samples along the way", [])
    section.images(
        [(image_plots.grid_uri(files[i]), image_plots.grid_caption(files[i])) for i in chosen]
    )
