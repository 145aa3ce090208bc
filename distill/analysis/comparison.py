"""The report of several runs, say a sweep of alpha: what differs, and what came of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from distill.analysis import image_plots, probe_plots
from distill.analysis.curve import Curve, read_curve
from distill.analysis.curve_plots import plot_curves
from distill.analysis.probe import Levels
from distill.analysis.report import (
    Options,
    Report,
    fitted,
    on_device,
    probe_run,
    teacher_distance,
)
from distill.analysis.run_folder import (
    explain_missing_networks,
    load_networks,
    run_settings,
    teacher_file,
)
from distill.errors import UserError


def labels_of(settings: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Name runs by the settings in which they differ: "alpha 0.5"; else by their own names.

    Args:
        settings: of each run, by its name.
    """
    differing = differing_settings(list(settings.values()))
    labels = {
        name: ", ".join(f"{key} {_short(values.get(key))}" for key in differing)
        for name, values in settings.items()
    }
    told_apart = len(set(labels.values())) == len(labels) and 0 < len(differing) <= 3
    return labels if told_apart else {name: name for name in settings}


def differing_settings(settings: list[dict[str, Any]]) -> list[str]:
    """The settings that are not the same in all runs that tell them, sorted; never the teacher.

    A setting that a run does not know (it is older than the setting) is no difference.
    """
    keys = sorted({key for values in settings for key in values} - {"teacher", "images_seen"})
    return [
        key
        for key in keys
        if len({json.dumps(values[key]) for values in settings if key in values}) > 1
    ]


def compare_runs(folders: list[Path], options: Options) -> Report:
    """Put several runs beside each other: curves, slopes, samples and score gaps.

    Raises:
        UserError: two folders have one name, none has a curve, a file is damaged, or a run's
            teacher is not the one named.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise UserError(f"two of the runs are called alike: {', '.join(names)}; rename one folder")
    report = Report(options)
    by_name = dict(zip(names, folders, strict=True))
    settings = {name: run_settings(folder) for name, folder in by_name.items()}
    labels = labels_of(settings)
    curves: dict[str, Curve] = {}
    for name, folder in by_name.items():
        try:
            curves[name] = read_curve(folder)
        except UserError as error:
            report.left_out.append(f"The curve of {name}: {error}.")
    if not curves:
        raise UserError(f"none of {', '.join(names)} has a curve: there is nothing to compare")
    _add_curves(report, by_name, curves, labels)
    _add_settings(report, settings, labels)
    _add_last_samples(report, by_name, labels)
    _add_gaps(report, by_name, labels)
    report.numbers |= {"findings": report.findings, "left_out": report.left_out}
    return report


def describe_runs(curves: dict[str, Curve], labels: dict[str, str]) -> list[str]:
    """Which run is nearest at the last number of images that all of them have seen."""
    if len(curves) < 2:
        return []
    common = set.intersection(*(set(curve.images.tolist()) for curve in curves.values()))
    if not common:
        return ["The runs were never measured at the same number of images: compare their lines."]
    mark = max(common)
    at = {name: float(curve.distances[curve.images == mark][0]) for name, curve in curves.items()}
    order = sorted(at, key=lambda name: at[name])
    best, worst = order[0], order[-1]
    if at[best] == at[worst]:
        return [
            f"After {mark:,.0f} images, the last mark that all share, all are at {at[best]:.2f}."
        ]
    sentences = [
        f"After {mark:,.0f} images, the last mark that all share, {labels[best]} is nearest "
        f"({at[best]:.2f}) and {labels[worst]} furthest ({at[worst]:.2f})."
    ]
    if len({curve.features for curve in curves.values()}) > 1:
        sentences.append("Their distances are over different features and do not compare.")
    return sentences


def _add_curves(
    report: Report, folders: dict[str, Path], curves: dict[str, Curve], labels: dict[str, str]
) -> None:
    fits = {name: fitted(curve, report.options.from_images) for name, curve in curves.items()}
    laws = {labels[name]: law for name, (law, _) in fits.items() if law is not None}
    report.left_out += [
        f"The slope of {name}: {reason}." for name, (_, reason) in fits.items() if reason
    ]
    first = next(iter(curves))
    distance, reason = teacher_distance(
        teacher_file(folders[first], report.options.teacher), curves[first].features
    )
    if reason:
        report.left_out.append(f"The teacher's distance: {reason}.")
    section = report.section("Distance against images seen", describe_runs(curves, labels))
    report.plot(
        section,
        "curves",
        plot_curves({labels[name]: c for name, c in curves.items()}, laws, distance),
        "Both axes are logarithmic. One run of each kind, one seed: a difference as small as the "
        "scatter of a run's own points about its line is none.",
    )
    rows = []
    for name, curve in curves.items():
        law, best = fits[name][0], int(np.argmin(curve.distances))
        accuracy = curve.accuracies[-1]
        rows.append(
            [
                labels[name],
                f"{curve.images[-1]:,.0f}",
                f"{curve.distances[-1]:.2f}",
                f"{curve.distances[best]:.2f}",
                "" if np.isnan(accuracy) else f"{accuracy:.1%}",
                "" if law is None else f"{law.slope:.3f} ({law.low:.3f} to {law.high:.3f})",
            ]
        )
        report.numbers.setdefault("runs", {})[name] = {
            "label": labels[name],
            "images_seen": curve.images.tolist(),
            "distance": curve.distances.tolist(),
            "slope": None if law is None else [law.slope, law.low, law.high],
        }
    section.table(["run", "images", "last distance", "lowest", "accuracy", "slope (95 %)"], rows)


def _add_settings(
    report: Report, settings: dict[str, dict[str, Any]], labels: dict[str, str]
) -> None:
    differing = differing_settings(list(settings.values()))
    report.numbers["differing"] = differing
    section = report.section("What differs between them", [])
    unknown = [name for name, values in settings.items() if not values]
    if unknown:
        report.left_out.append(f"Settings of {', '.join(unknown)}: no state.pt, no network.")
    if not differing:
        section.text("No setting that is known: the runs differ in length or in nothing.")
        return
    rows = [
        [labels[name], *(_short(values.get(key)) for key in differing)]
        for name, values in settings.items()
    ]
    section.table(["run", *differing], rows)


def _add_last_samples(report: Report, folders: dict[str, Path], labels: dict[str, str]) -> None:
    """The sample grids at the last mark that all runs have, else each run's last."""
    files = {name: sorted((path / "samples").glob("*.png")) for name, path in folders.items()}
    if missing := [name for name, samples in files.items() if not samples]:
        report.left_out.append(f"Samples of {', '.join(missing)}: none were written.")
    files = {name: samples for name, samples in files.items() if samples}
    if not files:
        return
    common = set.intersection(*({file.stem for file in samples} for samples in files.values()))
    section = report.section("Their images, the same seeds and classes", [])
    images = []
    for name, samples in files.items():
        file = next((f for f in samples if common and f.stem == max(common)), samples[-1])
        caption = f"{labels[name]}, {image_plots.grid_caption(file)}"
        images.append((image_plots.grid_uri(file, 420), caption))
    section.images(images)


def _add_gaps(report: Report, folders: dict[str, Path], labels: dict[str, str]) -> None:
    gaps: dict[str, tuple[Levels, np.ndarray]] = {}
    rows = []
    for name, folder in folders.items():
        teacher = teacher_file(folder, report.options.teacher)
        if reason := explain_missing_networks(folder, teacher):
            report.left_out.append(f"The score gap of {name}: {reason}.")
            continue
        assert teacher is not None
        networks = on_device(
            load_networks(folder, teacher, report.options.autoencoder), report.options.device
        )
        probe = probe_run(networks, report.options.images, report.options.device)
        gap, trained = probe.gap.mean(axis=1), probe.levels.trained
        gaps[labels[name]] = (probe.levels, gap)
        fake = probe.fake_loss[trained].mean() / probe.teacher_loss[trained].mean()
        rows.append([labels[name], f"{gap[trained].mean():.4g}", f"{fake:.3f}"])
        report.numbers["runs"].setdefault(name, {"label": labels[name]}).update(
            sigmas=probe.levels.sigmas.tolist(), score_gap=gap.tolist()
        )
    if not gaps:
        return
    section = report.section("Score gap by noise level", [])
    report.plot(
        section,
        "score-gaps",
        probe_plots.plot_gaps(gaps),
        "Each run's own generator under its own fake score. A fake score that lags behind its "
        "generator shows a small gap without the images being good: read this beside the curve.",
    )
    section.table(["run", "gap, mean", "ψ's loss to φ's"], rows)


def _short(value: Any) -> str:
    """A setting in a few characters."""
    return f"{value:g}" if isinstance(value, float) else json.dumps(value).strip('"')
