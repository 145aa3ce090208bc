"""`sid-distill`: train a teacher, distil it, measure, export and publish."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.errors import UserError

if TYPE_CHECKING:
    import torch

    from distill.networks import Denoiser
    from distill.recipe import LoopConfig

# torch takes seconds to import: each command imports what it needs, so that --help does not.

app = typer.Typer(
    help="From a diffusion teacher to a one-step generator that 'sid serve' offers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeOption = Annotated[
    str, typer.Option(help="A shipped recipe's name, or a .toml file: network, length and rates.")
]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder with Fashion-MNIST's four idx files; or a folder or .zip of images, one "
        "sub-folder a class. Left out: where Debian's dataset-fashion-mnist puts them.",
        show_default=False,
    ),
]
OutFolder = Annotated[
    Path,
    typer.Option(help="The run's folder. One that holds a run is resumed; on a CPU to the bit."),
]
DeviceOption = Annotated[
    str, typer.Option(help="'auto' takes CUDA where there is one; or 'cpu', 'cuda', 'cuda:1'.")
]


def _recipes_own(text: str) -> Any:
    """Make an option that replaces one number of the recipe."""
    return typer.Option(help=f"{text} Left out: the recipe's.", show_default=False)


ImagesOption = Annotated[int | None, _recipes_own("Stop after this many images.")]
BatchOption = Annotated[int | None, _recipes_own("Images a step.")]
LrOption = Annotated[float | None, _recipes_own("Adam's learning rate.")]
HalflifeOption = Annotated[
    float | None, _recipes_own("Images in which a weight's share in the average halves.")
]
SeedOption = Annotated[int | None, _recipes_own("Start of every random stream.")]


@app.command()
def teacher(
    out: OutFolder,
    recipe: RecipeOption = "fashion",
    data: DataOption = None,
    images: ImagesOption = None,
    batch: BatchOption = None,
    lr: LrOption = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a diffusion teacher on images.

    Channels and classes are those of the data; images of your own are scaled to the recipe's
    resolution. The result is OUT/network.safetensors.
    """
    from distill.data import load_dataset
    from distill.recipe import load_recipe, override
    from distill.teacher import TeacherTraining
    from distill.training import train

    chosen = load_recipe(recipe)
    target = _device(device)
    size = chosen.network.img_resolution
    dataset = load_dataset(data, resolution=size)
    if dataset.images.shape[-1] != size:
        raise UserError(
            f"the images are {dataset.images.shape[-1]} pixels wide, the recipe asks for {size}"
        )
    network = override(
        chosen.network,
        img_channels=dataset.images.shape[1],
        label_dim=len(dataset.classes),
    )
    config = override(
        chosen.teacher,
        total_images=images,
        batch=batch,
        lr=lr,
        ema_halflife=ema_halflife,
        seed=seed,
    )
    facts = {
        "role": "teacher",
        "recipe": recipe,
        "data": f"{dataset.name}, {len(dataset)} images",
        "classes": list(dataset.classes),
    }
    _report(train(TeacherTraining(network, config, dataset, target), out, facts), config, out)


@app.command()
def run(
    out: OutFolder,
    teacher: Annotated[Path, typer.Option(help="The teacher: a network.safetensors.")],
    recipe: RecipeOption = "fashion",
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature network (a shipped name or a .safetensors file) over which the distance "
            "is measured along the way; 'none' measures nothing. Left out: the recipe's.",
            show_default=False,
        ),
    ] = None,
    images: ImagesOption = None,
    batch: BatchOption = None,
    lr: LrOption = None,
    fake_lr: Annotated[
        float | None, _recipes_own("Learning rate of the fake-score network.")
    ] = None,
    cooldown: Annotated[
        int | None, _recipes_own("The last images, over which the learning rates fall to 0.")
    ] = None,
    alpha: Annotated[
        float | None,
        _recipes_own("Weight of the squared score gap: 1.0 is safe, 1.2 the paper's on CIFAR-10."),
    ] = None,
    t_max: Annotated[
        float | None, _recipes_own("End of the noise levels compared, of 1000 (800: sigma 24.4).")
    ] = None,
    weighting: Annotated[
        str | None, _recipes_own("'sid' divides a sample's loss by |x - teacher|; or 'none'.")
    ] = None,
    sigma_init: Annotated[
        float | None, _recipes_own("Noise level at which the generator denoises pure noise.")
    ] = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Distil a teacher into a one-step generator, without data (SiD).

    The result is OUT/network.safetensors; OUT/curve.jsonl holds the distance along the way.
    """
    from distill.checkpoints import load_network
    from distill.evaluation.evaluate import measure, one_step_sampler
    from distill.evaluation.features import load_detector
    from distill.recipe import load_recipe, override
    from distill.sid import SidTraining
    from distill.training import train

    chosen = load_recipe(recipe)
    target = _device(device)
    network, origin = load_network(teacher)
    if origin.get("role") != "teacher":
        raise UserError(f"{teacher} is a {origin.get('role')}: --teacher takes a teacher")
    config = override(
        chosen.sid,
        total_images=images,
        batch=batch,
        lr=lr,
        fake_lr=fake_lr,
        cooldown=cooldown,
        alpha=alpha,
        t_max=t_max,
        weighting=weighting,
        sigma_init=sigma_init,
        ema_halflife=ema_halflife,
        seed=seed,
    )
    numbers = config.model_dump(exclude_none=True, exclude={"betas", "checkpoint_every"})
    facts = (
        origin
        | numbers
        | {
            "role": "generator",
            "recipe": recipe,
            "teacher_images_seen": origin["images_seen"],
        }
    )
    detector = None
    detector_name = features or chosen.features or "none"
    if detector_name != "none":
        detector = load_detector(detector_name)
        detector.check_fits(network, origin["classes"])
        detector.network.to(target)

    def distance(generator: "Denoiser") -> dict[str, float]:
        if detector is None:
            return {}
        return measure(one_step_sampler(generator, config.sigma_init), generator, detector)

    evaluate = None if detector is None else distance
    _report(train(SidTraining(network, config, target), out, facts, evaluate), config, out)


@app.command()
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
    target = _device(device)
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


@app.command()
def analyze(
    run: Annotated[Path, typer.Argument(help="A distillation's folder.")],
    teacher: Annotated[
        Path | None,
        typer.Option(help="Its teacher, evaluated: drawn as a line.", show_default=False),
    ] = None,
    from_images: Annotated[
        int, typer.Option(min=1, help="Fit the line from here on, past the first drop.")
    ] = 1,
    out: Annotated[
        Path | None, typer.Option(help="The picture. Left out: RUN/curve.png.", show_default=False)
    ] = None,
) -> None:
    """Draw a run's distance against images seen in log-log, and fit its slope."""
    from distill.evaluation.curve import fit_power_law, plot_curve, read_curve
    from distill.evaluation.measurement import load_measurement

    images, distances = read_curve(run)
    late = images >= from_images
    law = fit_power_law(images[late], distances[late])
    line = None if teacher is None else load_measurement(teacher, "teacher").distance
    picture = out or run / "curve.png"
    plot_curve(picture, images, distances, law, images[late][0], line)
    for count, distance in zip(images, distances, strict=True):
        typer.echo(f"{count:>10.0f} images  {distance:8.3f}")
    typer.echo(f"slope {law.slope:.3f}, 95 % interval {law.low:.3f} to {law.high:.3f}: {picture}")


@app.command()
def features(
    out: Annotated[
        Path, typer.Option(help="The .safetensors file to write; its stem is its name.")
    ],
    data: DataOption = None,
    resolution: Annotated[
        int, typer.Option(min=8, help="Size to which your images are scaled: the recipe's.")
    ] = 28,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random stream.")] = 0,
) -> None:
    """Train the classifier whose features the Fréchet distance compares."""
    from distill.data import has_test_split, load_dataset
    from distill.evaluation.features import save_detector, train_detector

    train_set = load_dataset(data, "train", resolution)
    test_set = load_dataset(data, "test", resolution) if has_test_split(data) else None
    detector = train_detector(out.stem, train_set, test_set, epochs, seed)
    save_detector(out.with_suffix(".safetensors"), detector)
    typer.echo(detector.facts.model_dump_json(indent=2))


@app.command()
def export(
    generator: Annotated[Path, typer.Argument(help="A generator's .safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .onnx file to write.")],
) -> None:
    """Write a generator as one ONNX graph, from latents and labels to uint8 pixels."""
    from distill.export.onnx import export_onnx
    from distill.export.publish import load_generator

    network, facts = load_generator(generator)
    export_onnx(network, facts["sigma_init"], out)
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@app.command()
def publish(
    generator: Annotated[Path, typer.Argument(help="A generator's .safetensors.")],
    name: Annotated[str, typer.Option(help="The model's name, and its folder's.")],
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="Its teacher: the quality of both, as 'evaluate' wrote it, goes into the "
            "manifest. Left out: no quality is stated.",
            show_default=False,
        ),
    ] = None,
    models: Annotated[Path, typer.Option(help="The catalogue's folder.")] = Path("models"),
    description: Annotated[str, typer.Option(help="A sentence for the catalogue.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the weights (SPDX).")] = "Apache-2.0",
) -> None:
    """Export a generator, prove the graph against torch and write its bundle to models/NAME/."""
    from distill.export.publish import publish as publish_bundle

    folder = publish_bundle(generator, teacher, name, description, licence, models)
    typer.echo(f"{folder} is published: sid generate --models {models} --model {name} --seed 0")


def _device(name: str) -> "torch.device":
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used here ({reason}): try cpu") from None
    return device


def _report(seen: int, config: "LoopConfig", out: Path) -> None:
    if seen < config.total_images:
        typer.echo(f"stopped at {seen} images; the same command goes on from there")
        raise typer.Exit(130)
    typer.echo(f"{seen} images: {out / 'network.safetensors'}")


def main() -> None:
    """Run the command line; a user's mistake ends in one line and exit code 2."""
    try:
        app()
    except UserError as error:
        message = str(error)
    except ModuleNotFoundError as error:
        message = f"{error.name} is not installed: training needs 'make setup-dev', or pip's extra "
        message += "'distill'"
    except OSError as error:  # a folder that cannot be written, a full disk
        message = f"{error.filename or 'input or output'}: {error.strerror or error}"
    else:
        return
    typer.echo(f"error: {message}", err=True)
    sys.exit(2)
