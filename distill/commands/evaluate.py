"""`sid-distill evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.commands.options import BackgroundOption, DeviceOption, chosen_device, read_images
from distill.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill.evaluation.detector import Detector
    from distill.evaluation.measurement import Measurement
    from distill.evaluation.reference import Reference
    from distill.networks import Denoiser


def evaluate(
    network: Annotated[Path, typer.Argument(help="A teacher's or a generator's .safetensors.")],
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature network: a shipped name, a .safetensors file of 'sid-distill features', "
            "efficientnet-lite0, or the path of FID's own inception-2015-12-05.pt. Say it again "
            "for more: the pictures are drawn once. Left out: the shipped one that knows them.",
            show_default=False,
        ),
    ] = None,
    metrics: Annotated[
        str,
        typer.Option(
            help="What to tell beside the Fréchet distance, with commas between: kid (kernel "
            "distance), pr (precision and recall), is (Inception score)."
        ),
    ] = "",
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            help="Statistics of the real images: a .npz with mu and sigma, EDM's or one of "
            "'sid-distill reference'; once for each feature network that brings none.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="The real images themselves, where there is no reference: a folder or .zip.",
            show_default=False,
        ),
    ] = None,
    background: BackgroundOption = "white",
    protocol: Annotated[
        str,
        typer.Option(
            help="one: a single trial; edm: the best of three; sid: mean and deviation of ten."
        ),
    ] = "one",
    images: Annotated[
        int | None,
        typer.Option(
            min=256,
            help="Pictures to draw in each trial. Left out: 10,000 for one, 50,000 for the others.",
            show_default=False,
        ),
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Picture i has this seed + i.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Heun steps of a teacher, 2 x steps - 1 evaluations. Left out: 18, or 40 above "
            "32x32.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a network call.")] = 250,
    device: DeviceOption = "auto",
) -> None:
    """Measure a teacher (Heun's sampler) or a generator (one step).

    Prints the Fréchet distance to the real images, the accuracy where the feature network knows
    the classes, and the metrics asked for; and writes them beside the network as .quality.json,
    where 'publish' finds them. Started by torchrun, every process draws its share.
    """
    from distill.checkpoints import load_network
    from distill.evaluation.evaluate import heun_sampler, observe_pictures, one_step_sampler
    from distill.evaluation.measurement import save_measurement
    from distill.evaluation.observed import figures
    from distill.evaluation.protocol import PROTOCOLS
    from distill.training.distributed import join_world
    from service.bundle import sha256_file

    denoiser, facts = load_network(network)
    asked = _checked_metrics(metrics)
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol {protocol!r}: choose of {', '.join(PROTOCOLS)}")
    if facts["role"] == "generator" and steps is not None:
        raise UserError(f"{network} is a generator: it takes one step, leave out --steps")
    resolution = denoiser.config.img_resolution
    steps = steps or (18 if resolution <= 32 else 40)
    trials, count = PROTOCOLS[protocol].trials, images or PROTOCOLS[protocol].images
    shared = {
        "role": facts["role"],
        "network_sha256": sha256_file(network),
        "protocol": protocol,
        "images": count,
        "first_seed": first_seed,
        "evaluations": 1 if facts["role"] == "generator" else 2 * steps - 1,
    }
    detectors = _detectors(features or [], denoiser, facts["classes"])
    with join_world(chosen_device(device)) as world:
        denoiser.to(world.device)
        for detector in detectors:
            detector.network.to(world.device)
        if facts["role"] == "generator":
            sampler = one_step_sampler(denoiser, facts["sigma_init"])
        else:
            sampler = heun_sampler(denoiser, steps)
        references = []
        if world.is_main:
            references = _references(
                detectors, reference or [], data, resolution, background, asked
            )
        measured: list[list[dict[str, float]]] = [[] for _ in references]
        for trial in range(trials):
            observed = observe_pictures(
                sampler, denoiser, detectors, count, first_seed + trial * count, batch,
                progress=world.is_main, metrics=asked, world=world,
            )  # fmt: skip
            for own, seen, real in zip(measured, observed, references, strict=True):
                own.append(figures(seen, real, asked))
    if world.is_main:
        triples = zip(detectors, references, measured, strict=True)
        first, *others = (_measurement(shared, *triple) for triple in triples)
        for result in (first, *others):
            typer.echo(_table(result), err=True)
        whole = first.model_copy(update={"others": others})
        typer.echo(whole.model_dump_json(indent=2, exclude_none=True))
        save_measurement(network, whole)


def _checked_metrics(text: str) -> list[str]:
    from distill.evaluation.observed import METRICS

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"no metric {', '.join(unknown)}: choose of {', '.join(METRICS)}")
    return names


def _detectors(
    names: "Sequence[str]", denoiser: "Denoiser", classes: list[str]
) -> list["Detector"]:
    from distill.evaluation.features import fitting_detector, load_detector

    detectors = [load_detector(name) for name in names]
    for detector in detectors:
        detector.check_fits(denoiser, classes)
    return detectors or [fitting_detector(denoiser, classes)]


def _references(
    detectors: "Sequence[Detector]",
    files: "Sequence[Path]",
    data: Path | None,
    resolution: int,
    background: str,
    metrics: "Sequence[str]",
) -> list["Reference"]:
    """What each detector's pictures are compared with: a file, else the data, else its own."""
    from distill.evaluation.observed import OVER_FEATURES, checked_reference
    from distill.evaluation.reference import load_references, make_reference, own_reference

    loaded = load_references(files, detectors)
    images = None if data is None else read_images(data, resolution, background)
    keep = bool(OVER_FEATURES.intersection(metrics))
    references = []
    for detector in detectors:
        reference = loaded.get(detector.sha256)
        if reference is None and images is not None:
            reference = make_reference(images, detector, keep_features=keep)
        reference = reference or own_reference(detector)
        references.append(checked_reference(detector.name, reference, metrics))
    return references


def _measurement(
    shared: dict[str, Any],
    detector: "Detector",
    reference: "Reference",
    trials: list[dict[str, float]],
) -> "Measurement":
    from distill.evaluation.measurement import Measurement
    from distill.evaluation.protocol import summary

    # What was found of held-out real images was found against the detector's own statistics.
    held_out = detector.facts if reference.statistics is detector.reference else None
    figures: dict[str, Any] = dict(summary(shared["protocol"], trials))
    return Measurement(
        **shared,
        features=detector.name,
        features_sha256=detector.sha256,
        reference=reference.described,
        reference_data_sha256=reference.data_sha256,
        trials=trials if len(trials) > 1 else [],
        real_distance=held_out.test_distance if held_out else None,
        real_accuracy=held_out.test_accuracy if held_out else None,
        **figures,
    )


def _table(result: "Measurement") -> str:
    """Every figure by its name, a line each."""
    lines = [
        f"{result.images} pictures from seed {result.first_seed} on, {result.evaluations} network "
        f"evaluation{'s' * (result.evaluations > 1)} each, against {result.reference}"
    ]
    for figure, name in result.names.items():
        if (value := getattr(result, figure)) is not None:
            deviation = getattr(result, f"{figure}_std")
            lines.append(
                f"  {name:<52} {value:>10.4f}"
                + ("" if deviation is None else f" +- {deviation:.4f}")
            )
    if result.trials:
        each = ", ".join(f"{trial['distance']:.4f}" for trial in result.trials)
        lines.append(f"  protocol {result.protocol}, distances of the trials: {each}")
    return "\n".join(lines)
