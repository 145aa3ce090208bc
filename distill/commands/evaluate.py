"""`sid-distill evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import DeviceOption, chosen_device
from distill.errors import UserError


def evaluate(
    network: Annotated[Path, typer.Argument(help="A teacher's or a generator's .safetensors.")],
    features: Annotated[
        str, typer.Option(help="Feature network: a shipped name or a .safetensors file.")
    ] = "fashion-cnn",
    images: Annotated[int, typer.Option(min=256, help="Pictures to draw.")] = 10_000,
    first_seed: Annotated[int, typer.Option(min=0, help="Picture i has this seed + i.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Heun steps of a teacher, 2 x steps - 1 evaluations. Left out: 18.",
            show_default=False,
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure a teacher (Heun's sampler) or a generator (one step).

    Prints the Fréchet distance to the training images and the accuracy, and writes them beside
    the network as .quality.json, where 'publish' finds them.
    """
    from distill.checkpoints import load_network
    from distill.evaluation.evaluate import heun_sampler, measure, one_step_sampler
    from distill.evaluation.features import detector_file, load_detector
    from distill.evaluation.measurement import Measurement, save_measurement
    from service.bundle import sha256_file

    denoiser, facts = load_network(network)
    weights = sha256_file(network)
    detector = load_detector(features)
    detector.check_fits(denoiser, facts["classes"])
    target = chosen_device(device)
    denoiser, _ = denoiser.to(target), detector.network.to(target)
    if facts["role"] == "generator":
        if steps is not None:
            raise UserError(f"{network} is a generator: it takes one step, leave out --steps")
        sampler, evaluations = one_step_sampler(denoiser, facts["sigma_init"]), 1
    else:
        steps = steps or 18
        sampler, evaluations = heun_sampler(denoiser, steps), 2 * steps - 1
    measured = measure(sampler, denoiser, detector, images, first_seed, progress=True)
    result = Measurement(
        role=facts["role"],
        network_sha256=weights,
        features=detector.name,
        features_sha256=sha256_file(detector_file(features)),
        reference=f"{detector.facts.train_images} training images",
        images=images,
        first_seed=first_seed,
        evaluations=evaluations,
        real_distance=detector.facts.test_distance,
        real_accuracy=detector.facts.test_accuracy,
        **measured,
    )
    typer.echo(result.model_dump_json(indent=2))
    save_measurement(network, result)
