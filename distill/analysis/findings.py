"""Sentences that say what a report's numbers mean. Each is computed, none is assumed."""

# The letters are the paper's: ruff: noqa: RUF001

from collections.abc import Mapping

import numpy as np

from distill.analysis.curve import Curve, PowerLaw, fit_line, fit_power_law
from distill.analysis.paired_images import ClassComparison
from distill.analysis.probe import Probe
from distill.analysis.scalars import ACCURACIES, CROSS_ENTROPY, PARTS, Series
from distill.analysis.trend import SPAN

RECALLS_FOR_A_TREND = 5


def describe_curve(curve: Curve, law: PowerLaw | None, teacher: float | None) -> list[str]:
    """How far the run came, how fast, and what is left to the teacher."""
    last, best = curve.distances[-1], int(np.argmin(curve.distances))
    sentences = [f"After {curve.images[-1]:,.0f} images the distance is {last:.2f}."]
    if best != len(curve.images) - 1:
        sentences[0] = sentences[0][:-1] + (
            f"; it was lowest, {curve.distances[best]:.2f}, after {curve.images[best]:,.0f}."
        )
    if law is not None:
        halving = 2 ** (-1 / law.slope) if law.slope < 0 else np.inf
        falls = f"{halving:,.1f} times the images halve it" if halving < 1e4 else "it does not fall"
        sentences.append(
            f"The fitted slope is {law.slope:.3f} (95 %: {law.low:.3f} to {law.high:.3f}): {falls}."
        )
    if teacher is not None:
        ratio = last / teacher
        sentences.append(
            f"One step stands at {ratio:.2f} times the teacher's distance of {teacher:.2f}."
        )
        if law is not None and law.slope < 0 and ratio > 1:
            reach = (teacher / law.factor) ** (1 / law.slope)
            if reach > curve.images[-1]:
                sentences.append(
                    f"The line would meet the teacher after {reach:,.0f} images, if it went on."
                )
    return sentences


def describe_variety(curve: Curve) -> list[str]:
    """Precision and recall along the way, and a warning where variety is lost.

    What is looked at are the points of the last three and a half doublings. The distance can
    improve while recall falls: the student then draws ever better what it draws, and less of what
    there is.
    """
    measured = np.isfinite(curve.recalls)
    if not measured.any():
        return []
    last = np.flatnonzero(measured)[-1]
    images, recalls = curve.images[measured], curve.recalls[measured]
    best = int(np.argmax(recalls))
    sentences = [
        f"After {curve.images[last]:,.0f} images precision is {curve.precisions[last]:.3f} and "
        f"recall {curve.recalls[last]:.3f} (highest: {recalls[best]:.3f}, after "
        f"{images[best]:,.0f})."
    ]
    if warning := explain_lost_variety(curve):
        sentences.append(warning)
    return sentences


def explain_lost_variety(curve: Curve) -> str | None:
    """Warn of a recall that surely falls of late; None where it does not, or nobody can tell."""
    recent = curve.since(curve.images[-1] / SPAN)
    measured = np.isfinite(recent.recalls)
    if measured.sum() < RECALLS_FOR_A_TREND:
        return None
    images, distances = recent.images[measured], recent.distances[measured]
    recall = fit_line(np.log2(images), recent.recalls[measured])
    if recall.high >= 0:
        return None
    law = fit_power_law(images, distances)
    what = (
        "while the distance still falls: the generator improves what it draws and loses variety"
        if law.high < 0
        else "and the distance does not surely fall: more of the same training does harm"
    )
    return (
        f"Recall falls by {-recall.slope:.3f} a doubling of the images (95 %: {-recall.high:.3f} "
        f"to {-recall.low:.3f}), {what}."
    )


def describe_gap(probe: Probe) -> list[str]:
    """Where teacher and fake score differ, and whether psi knows the generator."""
    trained = probe.levels.trained
    sigmas, gap = probe.levels.sigmas[trained], probe.gap.mean(axis=1)[trained]
    at = int(np.argmax(gap))
    sentences = [
        f"E[(a − b)² / w] is {gap.mean():.4g} over training's noise levels, largest at "
        f"σ = {sigmas[at]:.2g} ({gap[at]:.4g})."
    ]
    if not trained.all():
        beyond = probe.gap.mean(axis=1)[~trained].mean() / gap.mean()
        sentences.append(
            f"Above t_max, where training does not look, it is {beyond:.2g} times that."
        )
    fake, teacher = (
        losses.mean(axis=1)[trained] for losses in (probe.fake_loss, probe.teacher_loss)
    )
    better = fake < teacher
    sentences.append(
        "The fake score denoises the generator's images better than the teacher does at "
        f"{better.sum()} of {len(better)} noise levels, by {1 - fake.sum() / teacher.sum():.1%} "
        "over all."
        + (
            ""
            if better.all()
            else " Where it does not, it has not caught up with the generator, or nothing is left "
            "to tell them apart."
        )
    )
    return sentences


def describe_discriminator(scalars: Mapping[str, Series]) -> list[str]:
    """What a discriminator tells apart late in a run, and how much the generator hears of it."""
    on_real, on_fake = (scalars[name].late for name in ACCURACIES.values())
    sentences = [
        f"Late in the run the discriminator is right about {on_real:.0%} of what it sees in real "
        f"images and {on_fake:.0%} in generated ones; its cross-entropy is "
        f"{scalars[CROSS_ENTROPY].late:.3f}, where guessing has {np.log(2):.3f}."
    ]
    if all(name in scalars for name in PARTS.values()):
        identity, gap, adversarial = (abs(scalars[name].late) for name in PARTS.values())
        larger = max(identity, gap)
        if larger > 0:
            sentences.append(
                f"The adversarial part of the generator's loss is {adversarial / larger:.2g} times "
                "the larger of the other two."
            )
    return sentences


def describe_classes(comparison: ClassComparison, classes: list[str]) -> list[str]:
    """Which classes the generator draws worse than its teacher, or with less variety."""
    sentences = []
    behind = comparison.generator_accuracy - comparison.teacher_accuracy
    if np.isfinite(behind).any():
        worst = int(np.nanargmin(behind))
        ours, theirs = comparison.generator_accuracy, comparison.teacher_accuracy
        sentences.append(
            f"The classifier takes {np.nanmean(ours):.0%} of the generator's images for the "
            f"class asked for, {np.nanmean(theirs):.0%} of the teacher's."
        )
        if behind[worst] < 0:
            sentences.append(
                f"The generator falls furthest behind on {classes[worst]}: {ours[worst]:.0%} "
                f"against {theirs[worst]:.0%}."
            )
        else:
            sentences.append("In no class are more of the teacher's images recognised.")
    variety = comparison.variety
    if np.isfinite(variety).any():
        least = int(np.nanargmin(variety))
        sentences.append(
            f"Variety is {np.nanmean(variety):.2f} times the teacher's in the mean; least in "
            f"{classes[least]} ({variety[least]:.2f})."
        )
    return sentences
