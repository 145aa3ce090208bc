"""What `sid-distill evaluate` measured of a network, in a file beside it."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from distill.checkpoints import write_atomically
from distill.errors import UserError
from service.bundle import sha256_file


class Measurement(BaseModel):
    """One network's measured quality, and what exactly was measured how.

    Attributes:
        role: of the network.
        network_sha256: of its file: a network trained on is another network.
        features: name of the feature network.
        features_sha256: of its file.
        reference: what the pictures were compared with.
        images, first_seed: which pictures were drawn.
        evaluations: network evaluations a picture.
        distance: Fréchet distance to the reference.
        accuracy: share of pictures taken for the class asked for; None without classes.
        real_distance, real_accuracy: the same of held-out real images, where there are any.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["teacher", "generator"]
    network_sha256: str
    features: str
    features_sha256: str
    reference: str
    images: int
    first_seed: int
    evaluations: int
    distance: float
    accuracy: float | None = None
    real_distance: float | None = None
    real_accuracy: float | None = None

    def is_comparable(self, other: "Measurement") -> bool:
        """Whether both were measured over the same features, on the same seeds."""
        same = ("features_sha256", "images", "first_seed")
        return all(getattr(self, name) == getattr(other, name) for name in same)


def measurement_file(network_file: Path) -> Path:
    """Where the measurement of a network lies."""
    return network_file.with_suffix(".quality.json")


def save_measurement(network_file: Path, measurement: Measurement) -> None:
    """Write a measurement beside its network."""
    text = measurement.model_dump_json(indent=2) + "\n"
    write_atomically(measurement_file(network_file), lambda file: file.write_text(text))


def load_measurement(network_file: Path, role: str) -> Measurement:
    """Read what was measured of a network.

    Raises:
        UserError: nothing was, or of other weights than the file now holds, or of another role.
    """
    file = measurement_file(network_file)
    again = f"run 'sid-distill evaluate {network_file}'"
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
