"""What a feature extractor saw of many images, in parts that add up, and the figures of it."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.evaluation.feature_extractor import ExtractedFeatures, Floats
from distill.evaluation.frechet import frechet_distance
from distill.evaluation.inception_score import SPLITS, inception_score
from distill.evaluation.kernel_distance import kernel_distance
from distill.evaluation.moments import Moments
from distill.evaluation.precision_recall import NEIGHBOURS, precision_recall
from distill.evaluation.reference import Reference

# What may be asked for beside the Fréchet distance: `sid-distill evaluate --metrics`.
METRICS = ("kid", "pr", "is")
OVER_FEATURES = {"kid", "pr"}  # these need each image's features, generated and real


@dataclass(frozen=True)
class FeatureStats:
    """Images as one feature extractor sees them.

    A plain Fréchet distance keeps moments alone, whatever the number of images.

    Attributes:
        moments: of the features.
        features, probabilities: float32 parts, in the order drawn, where a metric needs them.
        hits: how many were taken for the class asked for; None where nobody can tell.
    """

    moments: Moments
    features: tuple[Floats, ...]
    probabilities: tuple[Floats, ...]
    hits: int | None

    @classmethod
    def of(
        cls,
        extracted: ExtractedFeatures,
        classes: NDArray[np.int64] | None,
        metrics: Collection[str],
    ) -> Self:
        """Keep of one batch what `metrics` need; `classes` [N] are those asked for."""
        features, probabilities = extracted
        hits = None
        if probabilities is not None and classes is not None:
            hits = int((probabilities.argmax(axis=1) == classes).sum())
        return cls(
            Moments.of(features),
            (features,) if OVER_FEATURES.intersection(metrics) else (),
            (probabilities,) if probabilities is not None and "is" in metrics else (),
            hits,
        )

    def merge(self, later: Self) -> Self:
        """Both, `later` after this one."""
        return type(self)(
            self.moments.merge(later.moments),
            self.features + later.features,
            self.probabilities + later.probabilities,
            None if self.hits is None or later.hits is None else self.hits + later.hits,
        )


def checked_reference(
    name: str, reference: Reference | None, metrics: Collection[str]
) -> Reference:
    """Return what images are compared with over feature extractor `name`.

    Raises:
        UserError: there is nothing, or it lacks what `metrics` need.
    """
    if reference is None:
        raise UserError(
            f"{name} brings no statistics of real images: name the images with --data, or a "
            "reference of theirs with --reference (sid-distill reference makes one)"
        )
    if over := sorted(OVER_FEATURES.intersection(metrics)):
        feature_count = 0 if reference.features is None else len(reference.features)
        if feature_count <= NEIGHBOURS:
            raise UserError(
                f"{' and '.join(over)} need each real image's features ({reference.described}: "
                f"{feature_count}): name the images with --data, or a reference made with "
                f"'sid-distill reference --keep-features'"
            )
    return reference


def compute_metrics(
    stats: FeatureStats,
    reference: Reference,
    metrics: Collection[str] = (),
    pr_images: int | None = None,
) -> dict[str, float]:
    """Compute the distance and `metrics` against a reference that `checked_reference` let pass.

    Precision and recall take as many real images as generated ones, where there are enough
    (the same ones each time): both depend on these numbers. With `pr_images` they look at so many
    of the first generated images only: what they cost grows by the square.

    Returns:
        distance; accuracy where it is known; of kernel_distance and kernel_distance_std,
        precision and recall, class_score and class_score_std (the Inception score, over
        whatever network) those asked for.
    """
    distance = frechet_distance(stats.moments.statistics(), reference.statistics)
    result = {"distance": distance}
    if stats.hits is not None:
        result["accuracy"] = stats.hits / stats.moments.count
    if stats.features and reference.features is not None:
        generated, real = np.concatenate(stats.features), reference.features
        if "kid" in metrics:
            mean, deviation = kernel_distance(generated, real)
            result |= {"kernel_distance": mean, "kernel_distance_std": deviation}
        if "pr" in metrics:
            first = generated[:pr_images]
            chosen = np.random.RandomState(0).permutation(len(real))[: len(first)]
            precision, recall = precision_recall(first, real[chosen])
            result |= {"precision": precision, "recall": recall}
    if stats.probabilities:
        probabilities = np.concatenate(stats.probabilities)
        score, deviation = inception_score(probabilities, min(SPLITS, len(probabilities)))
        result |= {"class_score": score, "class_score_std": deviation}
    return result
