"""The real pictures that generated ones are compared with: statistics in the usual .npz.

`mu` [D] and `sigma` [D, D] are what EDM's and pytorch-fid's files hold. Ours say besides over
which feature network they were made and of what data; other programs pass that over.
"""

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from distill.data.datasets import Dataset
from distill.errors import UserError
from distill.evaluation.detector import Detector, Floats
from distill.evaluation.frechet import Statistics
from distill.evaluation.moments import Moments
from service.bundle import write_atomically


@dataclass(frozen=True)
class Reference:
    """Real pictures as one feature network sees them.

    Attributes:
        statistics: mean and covariance of their features.
        described: what they are, for people.
        features: their features float32 [M, D], which kernel distance, precision and recall
            need; None where only the statistics are known.
        count: M, where it is known.
        data_sha256: `Dataset.digest` of the data, where it is known.
    """

    statistics: Statistics
    described: str
    features: Floats | None = None
    count: int | None = None
    data_sha256: str | None = None


def own_reference(detector: Detector) -> Reference | None:
    """The statistics that a detector brings with it, if it does."""
    if detector.reference is None or detector.facts is None:
        return None
    count = detector.facts.train_images
    return Reference(detector.reference, f"{count} training images", count=count)


def make_reference(
    data: Dataset, detector: Detector, images: int | None = None, keep_features: bool = True
) -> Reference:
    """Look at real pictures.

    Args:
        data: the pictures.
        detector: the feature network.
        images: how many of them, drawn at random (the same ones each time); None for all.
        keep_features: keep the features themselves too.

    Raises:
        UserError: there are not that many, or fewer than two.
    """
    count = len(data) if images is None else images
    if not 2 <= count <= len(data):
        raise UserError(f"{data.name} has {len(data)} images: a reference of {count} is impossible")
    chosen = torch.arange(len(data))
    if count < len(data):
        chosen = torch.from_numpy(np.random.RandomState(0).permutation(len(data))[:count]).sort()[0]
    moments, kept = Moments.none(detector.network.dimensions), []
    for indices in tqdm(chosen.split(500), unit="batch", desc=f"real images, {detector.name}"):
        features, _ = detector.observe(data.images[indices])
        moments = moments.merge(Moments.of(features))
        if keep_features:
            kept.append(features)
    return Reference(
        moments.statistics(),
        f"{count} images of {data.name}",
        np.concatenate(kept) if kept else None,
        count,
        data.digest(),
    )


def save_reference(path: Path, reference: Reference, detector: Detector) -> None:
    """Write a reference, with the name and hash of the feature network that it was made over."""
    arrays = {
        "mu": reference.statistics.mu,
        "sigma": reference.statistics.sigma,
        "network": np.array(detector.name),
        "network_sha256": np.array(detector.sha256),
        "described": np.array(reference.described),
    }
    optional = {
        "features": reference.features,
        "count": reference.count,
        "data_sha256": reference.data_sha256,
    }
    arrays |= {name: np.array(value) for name, value in optional.items() if value is not None}

    def write(file: Path) -> None:
        with file.open("wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]  # numpy's own stub is too narrow

    write_atomically(path, write)


def load_references(paths: Sequence[Path], detectors: Sequence[Detector]) -> dict[str, Reference]:
    """Read reference files, each for the feature network it was made over.

    Returns:
        By `Detector.sha256`.

    Raises:
        UserError: a file is no reference, was made over another network than those of
            `detectors`, has other dimensions than its network, or does not say over which
            network it was made while there are several.
    """
    return dict(_load(path, detectors) for path in paths)


def _load(path: Path, detectors: Sequence[Detector]) -> tuple[str, Reference]:
    arrays = _read_arrays(path)
    mu, sigma = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    detector = _owner(path, arrays, detectors)
    dimensions = detector.network.dimensions
    if len(mu) != dimensions:
        raise UserError(
            f"{path} holds {len(mu)} features a picture, {detector.name} has {dimensions}: it was "
            "made over another network"
        )
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != dimensions):
        raise UserError(f"{path}: features of shape {features.shape}, expected [N, {dimensions}]")
    count = arrays.get("count")
    return detector.sha256, Reference(
        Statistics(mu, sigma),
        f"{arrays.get('described', 'statistics')} in {path.name}",
        None if features is None else features.astype(np.float32),
        None if count is None else int(count),
        str(arrays["data_sha256"]) if "data_sha256" in arrays else None,
    )


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read a .npz, executing nothing in it; mu and sigma are checked, the rest is as it is."""
    wanted = "expected a .npz with mu [D] and sigma [D, D]"
    if not path.is_file():
        raise UserError(f"no reference at {path}: make one with 'sid-distill reference'")
    try:
        with np.load(path, allow_pickle=False) as file:
            known = ("network", "network_sha256", "described", "features", "count", "data_sha256")
            arrays = {name: file[name] for name in ("mu", "sigma")}
            arrays |= {name: file[name] for name in known if name in file}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no reference ({error}): {wanted}") from None
    except AttributeError:  # a single array, .npy
        raise UserError(f"{path} is no reference (one array): {wanted}") from None
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise UserError(f"{path}: mu has shape {mu.shape}, sigma {sigma.shape}: {wanted}")
    numbers = [mu, sigma, *(arrays[name] for name in ("features",) if name in arrays)]
    if not all(a.dtype.kind in "fiu" and np.isfinite(a).all() for a in numbers):
        raise UserError(f"{path} holds values that are not finite numbers: {wanted}")
    if "count" in arrays and (arrays["count"].shape or arrays["count"].dtype.kind not in "iu"):
        raise UserError(f"{path}: its count of images is no whole number: {wanted}")
    return arrays


def _owner(
    path: Path, arrays: dict[str, NDArray[np.generic]], detectors: Sequence[Detector]
) -> Detector:
    """The feature network that a reference was made over."""
    if "network_sha256" not in arrays:
        if len(detectors) > 1:
            raise UserError(
                f"{path} does not say over which feature network it was made: name one --features"
            )
        return detectors[0]
    for detector in detectors:
        if detector.sha256 == str(arrays["network_sha256"]):
            return detector
    raise UserError(
        f"{path} was made over {arrays.get('network', 'another network')} "
        f"({str(arrays['network_sha256'])[:12]}), not over "
        + " or ".join(f"{d.name} ({d.sha256[:12]})" for d in detectors)
    )
