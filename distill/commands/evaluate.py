"""`sid-distill evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast, get_args

import typer

from distill.commands.options import (
    AutoencoderOption,
    BackgroundOption,
    DeviceOption,
    chosen_device,
    read_images,
)
from distill.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill.evaluation.feature_extractor import FeatureExtractor
    from distill.evaluation.measurement import Measurement
    from distill.evaluation.reference import Reference
    from distill.training_config import Renoise


def evaluate(
    network: Annotated[Path, typer.Argument(help="A teacher's or a generator's .safetensors.")],
    features: Annotated[
        list[str] | None,
        typer.Option(
            help="Feature extractor: a shipped name, a .safetensors file of 'sid-distill "
            "features', efficientnet-lite0, or the path of FID's own inception-2015-12-05.pt. Say "
            "it again for more: the images are drawn once. Left out: the shipped one that knows "
            "them.",
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
            "'sid-distill reference'; once for each feature extractor that brings none.",
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
    autoencoder: AutoencoderOption = None,
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
            help="Images to draw in each trial. Left out: 10,000 for one, 50,000 for the others.",
            show_default=False,
        ),
    ] = None,
    first_seed: Annotated[int, typer.Option(min=0, help="Image i has this seed + i.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Steps of a teacher's sampler. Of heun's each takes two evaluations, the last "
            "one; of euler's one. Left out: 35 evaluations, or 79 above 32x32.",
            show_default=False,
        ),
    ] = None,
    sampler_name: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="How a teacher draws: heun, on EDM's noise levels; or euler, on these too, and of "
            "a flow teacher on its own times. Left out: heun.",
            show_default=False,
        ),
    ] = None,
    renoise: Annotated[
        str | None,
        typer.Option(
            help="Noise between the steps of a generator of several: 'same' or 'fresh'. Another "
            "one than its training's is shown, and not kept beside the network. Left out: its "
            "training's.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a network call.")] = 250,
    device: DeviceOption = "auto",
) -> None:
    """Measure a teacher (Heun's sampler) or a generator (all of its steps).

    Prints the Fréchet distance to the real images, the accuracy where the feature extractor knows
    the classes, and the metrics asked for; and writes them beside the network as .quality.json,
    where 'publish' finds them. Started by torchrun, every process draws its share.
    """
    from distill.autoencoders import load_decoder, weights_sha256
    from distill.checkpoints import load_network
    from distill.evaluation.evaluate import (
        collect_feature_stats,
        euler_sampler,
        few_step_sampler,
        heun_sampler,
    )
    from distill.evaluation.feature_stats import compute_metrics
    from distill.evaluation.measurement import save_measurement
    from distill.evaluation.protocol import PROTOCOLS
    from distill.networks.latent_space import image_shape
    from distill.training.distributed import join_process_group
    from service.bundle import sha256_file

    denoiser, metadata = load_network(network)
    decoder, _ = load_decoder(network, denoiser.config, metadata, autoencoder)
    shape = image_shape(denoiser.config, decoder)
    metric_names = _checked_metrics(metrics)
    if protocol not in PROTOCOLS:
        raise UserError(f"no protocol {protocol!r}: choose of {', '.join(PROTOCOLS)}")
    generator_steps = metadata.get("steps", 1)
    taken = "one step" if generator_steps == 1 else f"{generator_steps} steps"
    if metadata["role"] == "generator" and steps is not None:
        raise UserError(f"{network} is a generator: it takes {taken}, leave out --steps")
    if metadata["role"] == "generator" and sampler_name is not None:
        raise UserError(f"{network} is a generator: it takes {taken}, leave out --sampler")
    if sampler_name not in (None, "heun", "euler"):
        raise UserError(f"no sampler {sampler_name!r}: choose of heun, euler")
    chosen_renoise = _checked_renoise(renoise, network, metadata)
    resolution = denoiser.config.img_resolution
    evaluations = 35 if resolution <= 32 else 79
    if sampler_name == "euler":
        steps = evaluations = steps or evaluations
    else:
        steps = steps or (evaluations + 1) // 2
        evaluations = 2 * steps - 1
    trials, count = PROTOCOLS[protocol].trials, images or PROTOCOLS[protocol].images
    shared: dict[str, Any] = {
        "role": metadata["role"],
        "network_sha256": sha256_file(network),
        "protocol": protocol,
        "images": count,
        "first_seed": first_seed,
        "evaluations": generator_steps if metadata["role"] == "generator" else evaluations,
    }
    if decoder is not None:
        shared["decoder_sha256"] = weights_sha256(decoder.decoder)
    if metadata["role"] == "teacher":
        shared["sampler"] = sampler_name or "heun"
    extractors = _extractors(features or [], shape, metadata["classes"])
    with join_process_group(chosen_device(device)) as context:
        denoiser.to(context.device)
        if decoder is not None:
            decoder.to(context.device)
        for extractor in extractors:
            extractor.network.to(context.device)
        if metadata["role"] == "generator":
            sampler = few_step_sampler(
                denoiser, metadata["sigma_init"], generator_steps, chosen_renoise
            )
        else:
            draws_by = euler_sampler if sampler_name == "euler" else heun_sampler
            sampler = draws_by(denoiser, steps)
        references = []
        if context.is_main:
            references = _references(
                extractors, reference or [], data, shape[1], background, metric_names
            )
        measured: list[list[dict[str, float]]] = [[] for _ in references]
        for trial in range(trials):
            stats = collect_feature_stats(
                sampler, denoiser, extractors, count, first_seed + trial * count, batch,
                progress=context.is_main, metrics=metric_names, context=context,
                decoder=decoder,
            )  # fmt: skip
            for trial_metrics, seen, real in zip(measured, stats, references, strict=True):
                trial_metrics.append(compute_metrics(seen, real, metric_names))
    if context.is_main:
        triples = zip(extractors, references, measured, strict=True)
        first, *others = (_measurement(shared, *triple) for triple in triples)
        for result in (first, *others):
            typer.echo(_table(result), err=True)
        whole = first.model_copy(update={"others": others})
        typer.echo(whole.model_dump_json(indent=2, exclude_none=True))
        if chosen_renoise == metadata.get("renoise", "same"):
            save_measurement(network, whole)
        else:
            typer.echo(f"not kept: {network} was trained with another renoise", err=True)


def _checked_renoise(renoise: str | None, network: Path, metadata: dict[str, Any]) -> "Renoise":
    from distill.training_config import Renoise

    if renoise is None:
        return cast("Renoise", metadata.get("renoise", "same"))
    if renoise not in get_args(Renoise):
        raise UserError(f"no renoise {renoise!r}: choose of {', '.join(get_args(Renoise))}")
    if metadata.get("steps", 1) == 1:
        raise UserError(f"{network} is no generator of several steps: leave out --renoise")
    return cast("Renoise", renoise)


def _checked_metrics(text: str) -> list[str]:
    from distill.evaluation.feature_stats import METRICS

    names = [name.strip() for name in text.split(",") if name.strip()]
    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(f"no metric {', '.join(unknown)}: choose of {', '.join(METRICS)}")
    return names


def _extractors(
    names: "Sequence[str]", shape: tuple[int, ...], classes: list[str]
) -> list["FeatureExtractor"]:
    from distill.evaluation.features import load_extractor, matching_extractor

    extractors = [load_extractor(name) for name in names]
    for extractor in extractors:
        extractor.check_fits(shape, classes)
    return extractors or [matching_extractor(shape, classes)]


def _references(
    extractors: "Sequence[FeatureExtractor]",
    files: "Sequence[Path]",
    data: Path | None,
    resolution: int,
    background: str,
    metrics: "Sequence[str]",
) -> list["Reference"]:
    """What each extractor's images are compared with: a file, else the data, else its own."""
    from distill.evaluation.feature_stats import OVER_FEATURES, checked_reference
    from distill.evaluation.reference import bundled_reference, load_references, make_reference

    loaded = load_references(files, extractors)
    images = None if data is None else read_images(data, resolution, background)
    keep = bool(OVER_FEATURES.intersection(metrics))
    references = []
    for extractor in extractors:
        reference = loaded.get(extractor.sha256)
        if reference is None and images is not None:
            reference = make_reference(images, extractor, keep_features=keep)
        reference = reference or bundled_reference(extractor)
        references.append(checked_reference(extractor.name, reference, metrics))
    return references


def _measurement(
    shared: dict[str, Any],
    extractor: "FeatureExtractor",
    reference: "Reference",
    trials: list[dict[str, float]],
) -> "Measurement":
    from distill.evaluation.measurement import Measurement
    from distill.evaluation.protocol import summary

    # What was found of held-out real images was found against the extractor's own statistics.
    held_out = extractor.metadata if reference.statistics is extractor.reference else None
    values: dict[str, Any] = dict(summary(shared["protocol"], trials))
    return Measurement(
        **shared,
        features=extractor.name,
        features_sha256=extractor.sha256,
        reference=reference.described,
        reference_data_sha256=reference.data_sha256,
        trials=trials if len(trials) > 1 else [],
        real_distance=held_out.test_distance if held_out else None,
        real_accuracy=held_out.test_accuracy if held_out else None,
        **values,
    )


def _table(result: "Measurement") -> str:
    """Every figure by its name, a line each."""
    lines = [
        f"{result.images} images from seed {result.first_seed} on, {result.evaluations} network "
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
