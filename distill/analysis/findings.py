"""Sentences that say what a report's numbers mean. Each is computed, none is assumed."""

# The letters are the paper's: ruff: noqa: RUF001

import numpy as np

from distill.analysis.curve import Array, Curve, PowerLaw
from distill.analysis.decomposition import Products, level_below, shares
from distill.analysis.pictures import ClassComparison
from distill.analysis.probe import Probe


def about_curve(curve: Curve, law: PowerLaw | None, teacher: float | None) -> list[str]:
    """How far the run came, how fast, and what is left to the teacher."""
    last, best = curve.distances[-1], int(np.argmin(curve.distances))
    said = [f"After {curve.images[-1]:,.0f} images the distance is {last:.2f}."]
    if best != len(curve.images) - 1:
        said[0] = said[0][:-1] + (
            f"; it was lowest, {curve.distances[best]:.2f}, after {curve.images[best]:,.0f}."
        )
    if law is not None:
        halving = 2 ** (-1 / law.slope) if law.slope < 0 else np.inf
        falls = f"{halving:,.1f} times the images halve it" if halving < 1e4 else "it does not fall"
        said.append(
            f"The fitted slope is {law.slope:.3f} (95 %: {law.low:.3f} to {law.high:.3f}): {falls}."
        )
    if teacher is not None:
        ratio = last / teacher
        said.append(
            f"One step stands at {ratio:.2f} times the teacher's distance of {teacher:.2f}."
        )
        if law is not None and law.slope < 0 and ratio > 1:
            reach = (teacher / law.factor) ** (1 / law.slope)
            if reach > curve.images[-1]:
                said.append(
                    f"The line would meet the teacher after {reach:,.0f} images, if it went on."
                )
    return said


def about_loss(probe: Probe, gradient: Products, signal: Products, alpha: float) -> list[str]:
    """Which part of the loss does the work, and at which noise levels."""
    trained = probe.levels.trained
    sigmas = probe.levels.sigmas[trained]
    said = []
    whole = float(signal.over(trained).identity_share(alpha)[0])
    if alpha and np.isfinite(whole):
        at = int(np.argmax(signal.norm(alpha)[trained]))
        role = "holds back" if whole > 1 else "adds"
        said.append(
            f"Of what noise does not average away, the score-identity term supplies "
            f"{whole:.0%} of the step; the squared gap, at α = {alpha:g}, {role} "
            f"{abs(1 - whole):.0%}. The step is largest at σ = {sigmas[at]:.2g}."
        )
    for products, what in ((signal, "that does not average away"), (gradient, "of single draws")):
        parts = shares(products.norm(alpha)[trained])
        level, held = level_below(sigmas, parts)
        said.append(f"Noise levels up to σ = {level:.2g} carry {held:.0%} of the gradient {what}.")
    noise = np.divide(
        signal.over(trained).squared_norm(alpha), gradient.over(trained).squared_norm(alpha)
    )
    if np.isfinite(noise[0]):
        said.append(
            f"{1 - min(noise[0], 1):.0%} of the gradient's squared size is the noise of one draw: "
            "that much only large batches and Adam's averaging take away."
        )
    return said


def about_gap(probe: Probe) -> list[str]:
    """Where teacher and fake score differ, and whether psi knows the generator."""
    trained = probe.levels.trained
    sigmas, gap = probe.levels.sigmas[trained], probe.mean("gap")[trained]
    at = int(np.argmax(gap))
    said = [
        f"E[(a − b)² / w] is {gap.mean():.4g} over training's noise levels, largest at "
        f"σ = {sigmas[at]:.2g} ({gap[at]:.4g})."
    ]
    if not trained.all():
        beyond = probe.mean("gap")[~trained].mean() / gap.mean()
        said.append(f"Above t_max, where training does not look, it is {beyond:.2g} times that.")
    fake, teacher = probe.mean("fake_loss")[trained], probe.mean("teacher_loss")[trained]
    better = fake < teacher
    said.append(
        "The fake score denoises the generator's pictures better than the teacher does at "
        f"{better.sum()} of {len(better)} noise levels, by {1 - fake.sum() / teacher.sum():.1%} "
        "over all."
        + (
            ""
            if better.all()
            else " Where it does not, it has not caught up with the generator, or nothing is left "
            "to tell them apart."
        )
    )
    identity, squared = (probe.values[n][trained].mean(axis=0) for n in ("identity", "squared"))
    if squared.mean() > 0:
        error = (identity - squared).std(ddof=1) / np.sqrt(len(squared)) / squared.mean()
        said.append(
            "Under an exact fake score the score identity's term and the squared gap are equal in "
            f"the mean; here their ratio is {identity.mean() / squared.mean():.2f} ± {error:.2f} "
            "(standard error)."
        )
    return said


def about_class_gap(gaps: Array, trained: np.ndarray, classes: list[str]) -> list[str]:
    """Which classes' scores disagree most; `gaps` is [K, L]."""
    mean = gaps[:, trained].mean(axis=1)
    if np.isnan(mean).all():
        return []
    order = [int(k) for k in np.argsort(-np.nan_to_num(mean, nan=-1))]
    worst, best = order[0], [k for k in order if np.isfinite(mean[k])][-1]
    return [
        f"The scores disagree most on {classes[worst]} ({mean[worst]:.4g}) and least on "
        f"{classes[best]} ({mean[best]:.4g}), {mean[worst] / mean[best]:.1f} times less."
    ]


def about_classes(comparison: ClassComparison, classes: list[str]) -> list[str]:
    """Which classes the generator draws worse than its teacher, or with less variety."""
    said = []
    behind = comparison.generator_accuracy - comparison.teacher_accuracy
    if np.isfinite(behind).any():
        worst = int(np.nanargmin(behind))
        ours, theirs = comparison.generator_accuracy, comparison.teacher_accuracy
        said.append(
            f"The classifier takes {np.nanmean(ours):.0%} of the generator's pictures for the "
            f"class asked for, {np.nanmean(theirs):.0%} of the teacher's."
        )
        if behind[worst] < 0:
            said.append(
                f"The generator falls furthest behind on {classes[worst]}: {ours[worst]:.0%} "
                f"against {theirs[worst]:.0%}."
            )
        else:
            said.append("In no class are more of the teacher's pictures recognised.")
    apart = comparison.mean_distance
    if len(classes) > 1 and np.nanmax(apart, initial=-1) > 0:
        worst = int(np.nanargmax(apart))
        said.append(
            f"Over {comparison.features} the class whose mean lies furthest from the teacher's is "
            f"{classes[worst]} ({apart[worst]:.0%} of the teacher's spread)."
        )
    variety = comparison.variety
    if np.isfinite(variety).any():
        least = int(np.nanargmin(variety))
        said.append(
            f"Variety is {np.nanmean(variety):.2f} times the teacher's in the mean; least in "
            f"{classes[least]} ({variety[least]:.2f})."
        )
    return said
