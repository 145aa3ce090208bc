"""What `sid-distill evaluate` measured of a network, in a file beside it."""

import shlex
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.errors import UserError
from distill.evaluation import inception
from distill.evaluation.protocol import Name
from service.bundle import sha256_file, write_atomically


class Measurement(BaseModel):
    """One network's measured quality, and what exactly was measured how.

    Attributes:
        role: of the network.
        network_sha256: of its file: a network trained on is another network.
        features: name of the feature extractor.
        features_sha256: of its file.
        reference: what the images were compared with.
        reference_data_sha256: `Dataset.digest` of the real images, where it is known.
        protocol: one of `distill.evaluation.protocol`.
        images, first_seed: which images were drawn, in the first trial.
        evaluations: network evaluations an image.
        decoder_sha256: of the decoder's weights that made the pixels of latents; None of a network
            of pixels, and where it is not noted: then the autoencoder's own.
        sampler: of a teacher; None where it is not noted, and then Heun's.
        distance: Fréchet distance to the reference.
        accuracy: share of images taken for the class asked for; None without classes.
        precision, recall: improved precision and recall (Kynkäänniemi et al. 2019).
        kernel_distance: KID's estimate over these features (Binkowski et al. 2018).
        class_score: the Inception score over this network's classes (Salimans et al. 2016).
        *_std: over trials; of kernel_distance and class_score, in a protocol of one trial or
            the best of three, over the subsets of that trial.
        trials: the figures of each, where there are several.
        real_distance, real_accuracy: the same of held-out real images, where there are any.
        others: the same images over other feature extractors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["teacher", "generator"]
    network_sha256: str
    features: str
    features_sha256: str
    reference: str
    reference_data_sha256: str | None = None
    protocol: Name = "one"
    images: int
    first_seed: int
    evaluations: int
    decoder_sha256: str | None = None
    sampler: Literal["heun", "euler"] | None = None
    distance: float
    distance_std: float | None = None
    accuracy: float | None = None
    accuracy_std: float | None = None
    precision: float | None = None
    precision_std: float | None = None
    recall: float | None = None
    recall_std: float | None = None
    kernel_distance: float | None = None
    kernel_distance_std: float | None = None
    class_score: float | None = None
    class_score_std: float | None = None
    trials: list[dict[str, float]] = []
    real_distance: float | None = None
    real_accuracy: float | None = None
    others: "list[Measurement]" = []

    def is_comparable(self, other: "Measurement") -> bool:
        """Whether both were measured over the same features and reference, on the same seeds."""
        same = ("features_sha256", "reference", "protocol", "images", "first_seed")
        return all(getattr(self, name) == getattr(other, name) for name in same)

    @property
    def names(self) -> dict[str, str]:
        """What each figure is called: FID and IS over FID's own network alone."""
        if self.features_sha256 == inception.SHA256:
            frechet, kernel, score = "FID", "KID", "Inception score"
        else:
            frechet = f"Fréchet distance over {self.features} features"
            kernel = f"kernel distance over {self.features} features"
            score = f"class score over {self.features} classes"
        return {
            "distance": frechet,
            "accuracy": f"accuracy, as {self.features} sees it",
            "precision": f"precision over {self.features} features",
            "recall": f"recall over {self.features} features",
            "kernel_distance": kernel,
            "class_score": score,
        }


def measurement_file(network_file: Path) -> Path:
    """Where the measurement of a network lies."""
    return network_file.with_suffix(".quality.json")


def save_measurement(network_file: Path, measurement: Measurement) -> None:
    """Write a measurement beside its network."""
    text = measurement.model_dump_json(indent=2, exclude_none=True) + "\n"
    write_atomically(measurement_file(network_file), lambda file: file.write_text(text, "utf-8"))


def load_measurement(network_file: Path, role: str) -> Measurement:
    """Read what was measured of a network.

    Raises:
        UserError: nothing was, or of other weights than the file now holds, or of another role.
    """
    file = measurement_file(network_file)
    command = shlex.join(["sid-distill", "evaluate", str(network_file)])
    again = f"run {command} (with the --features that know its images), or leave --teacher out"
    if not file.exists():
        raise UserError(f"{file} is missing: {again}")
    try:
        measurement = Measurement.model_validate_json(file.read_bytes())
    except ValidationError:
        raise UserError(f"{file} is no measurement of sid-distill's: {again}") from None
    if measurement.network_sha256 != sha256_file(network_file):
        raise UserError(f"{file} was measured before {network_file.name} changed: {again}")
    if measurement.role != role:
        raise UserError(f"{network_file} is a {measurement.role}, not a {role}")
    return measurement
