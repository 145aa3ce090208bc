"""What a report is asked for, what it holds, and the looks that every report shares."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from distill.analysis.curve import Curve, PowerLaw, fit_power_law
from distill.analysis.page import Section
from distill.analysis.paired_images import generate, seeded_inputs
from distill.analysis.plotting import save_png, to_svg
from distill.analysis.probe import Probe, noise_levels, probe
from distill.analysis.run_folder import Networks, run_metadata
from distill.errors import UserError
from distill.evaluation.feature_extractor import FeatureExtractor
from distill.evaluation.features import load_extractor, matching_extractor
from distill.evaluation.measurement import load_measurement
from distill.networks.latent_space import image_shape

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options:
    """What a report looks at, and how closely.

    Attributes:
        teacher: its file; None takes the one that run.json names.
        features: feature extractor for the comparison of images: a name or a file, "none" for
            pixels, None for the run's own.
        from_images: the curve's line is fitted from here on.
        images: images whose losses are looked at.
        images_per_class: how many teacher and generator draw; 0 draws none.
        device: where the networks run.
        plots: a folder that receives each plot as PNG too.
        autoencoder: its file; None takes the one that the run had.
    """

    teacher: Path | None = None
    features: str | None = None
    from_images: int = 1
    images: int = 256
    images_per_class: int = 50
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    plots: Path | None = None
    autoencoder: Path | None = None


@dataclass
class Report:
    """What was written so far.

    Attributes:
        sections: of the page.
        numbers: of report.json.
        findings: every sentence said.
        left_out: what could not be shown, and why.
    """

    options: Options
    sections: list[Section] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def section(self, title: str, sentences: list[str]) -> Section:
        """Begin a section with its findings."""
        section = Section(title)
        section.findings(sentences)
        self.findings += sentences
        self.sections.append(section)
        return section

    def plot(self, section: Section, name: str, figure: "Figure", caption: str) -> None:
        """Add a plot to a section, and as PNG to the folder of plots if one is asked for."""
        section.plot(to_svg(figure), caption, name.replace("-", " "))
        if self.options.plots is not None:
            save_png(self.options.plots / f"{name}.png", figure)


def on_device(networks: Networks, device: torch.device) -> Networks:
    """Move the networks; return them."""
    for network in (networks.teacher, networks.fake_score, networks.generator):
        network.to(device)
    if networks.decoder is not None:
        networks.decoder.to(device)
    return networks


def probe_run(networks: Networks, count: int, device: torch.device) -> Probe:
    """Look at the losses of the generator's images of seeds 0 to `count` - 1."""
    z, _, one_hot = seeded_inputs(networks, count, device)
    return probe(
        networks.teacher,
        networks.fake_score,
        generate(networks, z, one_hot),
        one_hot,
        noise_levels(networks.settings["t_max"]),
        networks.teacher.config.preconditioning,
        progress=True,
    )


def fitted(curve: Curve, from_images: int) -> tuple[PowerLaw | None, str | None]:
    """The line through the curve's later points; or None and why there is none."""
    late = curve.since(from_images)
    try:
        return fit_power_law(late.images, late.distances), None
    except UserError as error:
        return None, str(error)


def teacher_distance(teacher: Path | None, features: str | None) -> tuple[float | None, str | None]:
    """What `evaluate` measured of the teacher over the same features; or None and why not."""
    if teacher is None:
        return None, "the teacher is not known"
    try:
        measurement = load_measurement(teacher, "teacher")
    except UserError as error:
        return None, str(error)
    over = getattr(measurement, "features", features)
    if features is not None and over != features:
        return None, f"{teacher} was measured over {over}, the run over {features}"
    return measurement.distance, None


def chosen_extractor(
    folder: Path, networks: Networks, options: Options
) -> tuple[FeatureExtractor | None, str | None]:
    """The feature extractor asked for, or the run's own, or a shipped one that fits, in this order.

    Returns:
        It and None; or None and why pixels must do. A network asked for by name must be there.

    Raises:
        UserError: the one asked for is not there, or knows other images.
    """
    if options.features == "none":
        return None, None
    name = options.features or run_metadata(folder).get("features")
    shape = image_shape(networks.generator.config, networks.decoder)
    try:
        if isinstance(name, str):
            extractor = load_extractor(name)
            extractor.check_fits(shape, networks.classes)
        else:
            extractor = matching_extractor(shape, networks.classes)
    except UserError as error:
        if options.features is not None:
            raise
        return None, str(error)
    extractor.network.to(options.device)
    return extractor, None


def numbers(values: "np.ndarray") -> list[float | None]:
    """An array as JSON has it: NaN and infinities are null."""
    return [float(value) if math.isfinite(value) else None for value in values]
