"""The real images that generated ones are compared with: statistics in the usual .npz.

`mu` [D] and `sigma` [D, D] are what EDM's and pytorch-fid's files hold. Ours say besides over
which feature extractor they were made and of what data; other programs pass that over.
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
from distill.evaluation.feature_extractor import FeatureExtractor, Floats
from distill.evaluation.frechet import Statistics
from distill.evaluation.moments import Moments
from service.bundle import write_atomically


@dataclass(frozen=True)
class Reference:
    """Real images as one feature extractor sees them.

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


def bundled_reference(extractor: FeatureExtractor) -> Reference | None:
    """The statistics that an extractor brings with it, if it does."""
    if extractor.reference is None or extractor.metadata is None:
        return None
    count = extractor.metadata.train_images
    return Reference(extractor.reference, f"{count} training images", count=count)


def make_reference(
    data: Dataset,
    extractor: FeatureExtractor,
    images: int | None = None,
    keep_features: bool = True,
) -> Reference:
    """Look at real images.

    Args:
        data: the images.
        extractor: the feature extractor.
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
    moments, kept = Moments.none(extractor.network.dimensions), []
    for indices in tqdm(chosen.split(500), unit="batch", desc=f"real images, {extractor.name}"):
        features, _ = extractor.extract(data.images[indices])
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


def save_reference(path: Path, reference: Reference, extractor: FeatureExtractor) -> None:
    """Write a reference, with the name and hash of the feature extractor that it was made over."""
    arrays = {
        "mu": reference.statistics.mu,
        "sigma": reference.statistics.sigma,
        "network": np.array(extractor.name),
        "network_sha256": np.array(extractor.sha256),
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


def load_references(
    paths: Sequence[Path], extractors: Sequence[FeatureExtractor]
) -> dict[str, Reference]:
    """Read reference files, each for the feature extractor it was made over.

    Returns:
        By `FeatureExtractor.sha256`.

    Raises:
        UserError: a file is no reference, was made over another network than those of
            `extractors`, has other dimensions than its network, or does not say over which
            network it was made while there are several.
    """
    return dict(_load(path, extractors) for path in paths)


def _load(path: Path, extractors: Sequence[FeatureExtractor]) -> tuple[str, Reference]:
    arrays = _read_arrays(path)
    mu, sigma = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
    extractor = _owner(path, arrays, extractors)
    dimensions = extractor.network.dimensions
    if len(mu) != dimensions:
        raise UserError(
            f"{path} holds {len(mu)} features an image, {extractor.name} has {dimensions}: it was "
            "made over another network"
        )
    features = arrays.get("features")
    if features is not None and (features.ndim != 2 or features.shape[1] != dimensions):
        raise UserError(f"{path}: features of shape {features.shape}, expected [N, {dimensions}]")
    count = arrays.get("count")
    return extractor.sha256, Reference(
        Statistics(mu, sigma),
        f"{arrays.get('described', 'statistics')} in {path.name}",
        None if features is None else features.astype(np.float32),
        None if count is None else int(count),
        str(arrays["data_sha256"]) if "data_sha256" in arrays else None,
    )


def _read_arrays(path: Path) -> dict[str, NDArray[np.generic]]:
    """Read a .npz, executing nothing in it; mu and sigma are checked, the rest is as it is."""
    expected = "expected a .npz with mu [D] and sigma [D, D]"
    if not path.is_file():
        raise UserError(f"no reference at {path}: make one with 'sid-distill reference'")
    try:
        with np.load(path, allow_pickle=False) as file:
            names = ("network", "network_sha256", "described", "features", "count", "data_sha256")
            arrays = {name: file[name] for name in ("mu", "sigma")}
            arrays |= {name: file[name] for name in names if name in file}
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no reference ({error}): {expected}") from None
    except AttributeError:  # a single array, .npy
        raise UserError(f"{path} is no reference (one array): {expected}") from None
    mu, sigma = arrays["mu"], arrays["sigma"]
    if mu.ndim != 1 or sigma.shape != 2 * mu.shape:
        raise UserError(f"{path}: mu has shape {mu.shape}, sigma {sigma.shape}: {expected}")
    numbers = [mu, sigma, *(arrays[name] for name in ("features",) if name in arrays)]
    if not all(a.dtype.kind in "fiu" and np.isfinite(a).all() for a in numbers):
        raise UserError(f"{path} holds values that are not finite numbers: {expected}")
    if "count" in arrays and (arrays["count"].shape or arrays["count"].dtype.kind not in "iu"):
        raise UserError(f"{path}: its count of images is no whole number: {expected}")
    return arrays


def _owner(
    path: Path, arrays: dict[str, NDArray[np.generic]], extractors: Sequence[FeatureExtractor]
) -> FeatureExtractor:
    """The feature extractor that a reference was made over."""
    if "network_sha256" not in arrays:
        if len(extractors) > 1:
            raise UserError(
                f"{path} does not say over which feature extractor it was made: name one --features"
            )
        return extractors[0]
    for extractor in extractors:
        if extractor.sha256 == str(arrays["network_sha256"]):
            return extractor
    raise UserError(
        f"{path} was made over {arrays.get('network', 'another network')} "
        f"({str(arrays['network_sha256'])[:12]}), not over "
        + " or ".join(f"{d.name} ({d.sha256[:12]})" for d in extractors)
    )
