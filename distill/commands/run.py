"""`sid-distill run`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.commands.options import (
    AugmentOption,
    AutoencoderOption,
    BackgroundOption,
    BatchOption,
    Compile,
    CompileOption,
    CudaGraphOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
    LearnedDataOption,
    LrOption,
    MicrobatchOption,
    OutFolder,
    PrecisionOption,
    RecipeOption,
    SeedOption,
    ShardOption,
    TeacherOption,
    begun_precision,
    chosen_device,
    default_from_recipe,
    read_recipe,
    read_teacher,
    read_training_data,
    report,
    with_precision,
)
from distill.commands.start import read_start, with_fitting_level
from distill.commands.stopping import StopOption, early_end, with_stop
from distill.errors import UserError
from distill.training.allocator import keep_freed_memory

if TYPE_CHECKING:
    from distill.data.latents import TrainingData
    from distill.networks import Denoiser, NetworkLayout
    from distill.networks.latent_space import LatentDecoder
    from distill.training.method import Method


def run(
    out: OutFolder,
    teacher: TeacherOption,
    recipe: RecipeOption = "fashion",
    method: Annotated[
        str | None,
        typer.Option(
            help="By which losses: 'sid', or another that docs/methods.md describes. One that has "
            "no section in the recipe takes over what it knows of the first. Left out: that of "
            "the recipe's first section.",
            show_default=False,
        ),
    ] = None,
    generator: Annotated[
        Path | None,
        typer.Option(
            help="Where the generator starts: a network.safetensors of 'sid-distill regress' or of "
            "another run of the same teacher's. Left out: the teacher.",
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Feature extractor over which the distance is measured along the way, as "
            "'evaluate' takes it; 'none' measures nothing. Left out: the recipe's.",
            show_default=False,
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            help="Statistics of the real images for it: a .npz of 'sid-distill reference' or of "
            "EDM. One made with --keep-features has precision and recall measured too. Left out: "
            "those that it brings.",
            show_default=False,
        ),
    ] = None,
    data: LearnedDataOption = None,
    autoencoder: AutoencoderOption = None,
    background: BackgroundOption = "white",
    images: ImagesOption = None,
    stop: StopOption = None,
    batch: BatchOption = None,
    microbatch: MicrobatchOption = None,
    precision: PrecisionOption = None,
    lr: LrOption = None,
    fake_lr: Annotated[
        float | None, default_from_recipe("Learning rate of the fake-score network.")
    ] = None,
    cooldown: Annotated[
        int | None, default_from_recipe("The last images, over which the learning rates fall to 0.")
    ] = None,
    alpha: Annotated[
        float | None,
        default_from_recipe(
            "Weight of the squared score gap: 1.0 is safe, 1.2 the paper's on CIFAR-10."
        ),
    ] = None,
    t_max: Annotated[
        float | None,
        default_from_recipe("End of the noise levels compared, of 1000 (800: sigma 24.4)."),
    ] = None,
    weighting: Annotated[
        str | None,
        default_from_recipe("'sid' divides a sample's loss by |x - teacher|; or 'none'."),
    ] = None,
    sigma_init: Annotated[
        float | None,
        default_from_recipe(
            "Noise level at which the generator denoises pure noise. Of a recipe that names none: "
            "the spread of the teacher's mean colours times the images' side."
        ),
    ] = None,
    steps: Annotated[
        int | None,
        default_from_recipe("Calls of the generator that make an image: 1, 2 or 4, in one graph."),
    ] = None,
    renoise: Annotated[
        str | None,
        default_from_recipe(
            "Noise that the later steps add: 'same' as at first; or 'fresh', to measure beside "
            "it, which cannot be exported."
        ),
    ] = None,
    augment: AugmentOption = None,
    dropout: Annotated[
        float | None, default_from_recipe("Dropout of fake score and generator while they learn.")
    ] = None,
    class_frequencies: Annotated[
        str | None,
        typer.Option(
            help="How often each class is drawn: numbers with commas between, or a file with one "
            "a line. Left out: the recipe's, or all alike.",
            show_default=False,
        ),
    ] = None,
    ema_halflife: HalflifeOption = None,
    seed: SeedOption = None,
    device: DeviceOption = "auto",
    compile_networks: CompileOption = Compile.auto,
    shard: ShardOption = False,
    no_cuda_graph: CudaGraphOption = False,
) -> None:
    """Distil a teacher into a generator of one step or a few: by SiD, without data, or otherwise.

    --data and --background are for a method that learns from real images beside its teacher. The
    result is OUT/network.safetensors; OUT/curve.jsonl holds the distance along the way, and
    precision and recall if --reference holds features.
    """
    keep_freed_memory()
    from distill.autoencoders import load_decoder
    from distill.evaluation.evaluate import few_step_sampler, measure
    from distill.evaluation.feature_stats import checked_reference
    from distill.evaluation.features import load_extractor
    from distill.evaluation.precision_recall import IMAGES_ALONG_A_RUN
    from distill.evaluation.reference import bundled_reference, load_references
    from distill.licences import licence_of_both
    from distill.methods.registry import METHODS
    from distill.networks.latent_space import image_shape
    from distill.recipe import override
    from distill.training.distillation import Distillation
    from distill.training.distributed import join_process_group
    from distill.training.loop import train

    chosen, section = read_recipe(recipe, method)
    chosen_method = METHODS[method or chosen.method]
    network, origin = read_teacher(teacher)
    if difference := _difference(chosen.network, network.config):
        typer.echo(f"note: {difference}; its rates may not suit", err=True)
    if autoencoder is None and chosen.autoencoder is not None:
        if "latents" not in origin:
            raise UserError(
                f"the recipe {recipe} is for latents of {chosen.autoencoder}, and {teacher} draws "
                "pixels: take another recipe or another teacher"
            )
        autoencoder = Path(chosen.autoencoder)
    decoder, _ = load_decoder(teacher, network.config, origin, autoencoder)
    if decoder is not None:
        origin["latents"] = decoder.space.model_dump(exclude_none=True)
    start = None if generator is None else read_start(generator, network, origin, sigma_init)
    if start is not None:
        sigma_init = start.sigma_init
    given = override(
        section,
        total_images=images,
        batch=batch,
        microbatch=microbatch,
        precision=precision,
        lr=lr,
        fake_lr=fake_lr,
        cooldown=cooldown,
        alpha=alpha,
        t_max=t_max,
        weighting=weighting,
        sigma_init=sigma_init,
        steps=steps,
        renoise=renoise,
        augment=augment,
        dropout=dropout,
        class_frequencies=class_frequencies and _numbers(class_frequencies),
        ema_halflife=ema_halflife,
        seed=seed,
    )
    dataset = _real_images(chosen_method(given), network, origin, data, background, decoder)
    if start is not None:
        start.check_steps(given.steps)
    extractor_name = features or chosen.features or "none"
    extractor, real, metrics = None, None, list[str]()
    if extractor_name != "none":
        extractor = load_extractor(extractor_name)
        extractor.check_fits(image_shape(network.config, decoder), origin["classes"])
        files = [] if reference is None else [reference]
        real = load_references(files, [extractor]).get(extractor.sha256) or bundled_reference(
            extractor
        )
        if real is not None and real.features is not None:
            metrics.append("pr")
        checked_reference(extractor.name, real, metrics)

    fixed = sigma_init is not None or "sigma_init" in section.model_fields_set
    named = precision is not None or "precision" in section.model_fields_set
    with join_process_group(chosen_device(device), shard, not no_cuda_graph) as context:
        started_from = _origin(teacher, extractor_name, recipe)
        if dataset is not None:
            started_from["data"] = None if data is None else str(data.resolve())
        config = with_precision(given, named, context, lambda: begun_precision(out))
        config = with_stop(config, stop, extractor_name, out, context)
        early = early_end(config, out)
        if not fixed:
            config = with_fitting_level(config, network, out, started_from, context)
        unsaid = {"betas", "checkpoint_every"}
        if config.steps == 1:  # a file that says nothing of steps has one
            unsaid |= {"steps", "renoise"}
        metadata = (
            origin
            | config.model_dump(exclude_none=True, exclude=unsaid)
            | {
                "role": "generator",
                "recipe": recipe,
                "method": chosen_method.name,
                "teacher_images_seen": origin.get("images_seen"),
            }
        )
        if start is not None:
            metadata["started_from"] = start.described
            if licence := licence_of_both(origin.get("licence"), start.licence):
                metadata["licence"] = licence
        if dataset is not None:
            learned_from = f"{dataset.name}, {len(dataset)} images"
            # A licence is never assumed of images that nobody has spoken for: publish asks.
            if learned_from != origin.get("data"):
                metadata["data"] = learned_from
                if chosen.licence_for(dataset.name) != metadata.get("licence"):
                    # It has to fit the teacher's all the same.
                    metadata["teacher_licence"] = metadata.pop("licence", None)

        def distance(generator: "Denoiser") -> dict[str, Any]:
            assert extractor is not None
            sampler = few_step_sampler(generator, config.sigma_init, config.steps, config.renoise)
            # A sharded network computes on all processes at once: each draws all images.
            drawn_by = None if context.shard else context
            measured = measure(
                sampler,
                generator,
                extractor,
                reference=real,
                metrics=metrics,
                context=drawn_by,
                pr_images=IMAGES_ALONG_A_RUN,
                decoder=decoder,
            )
            rate = {"rate_share": training.rate_share}
            return {"features": extractor.name, **measured, **rate}

        begins = None if start is None else start.network
        training = Distillation(
            chosen_method(config), network, context, begins, compile_networks.value, dataset
        )
        if extractor is not None:
            extractor.network.to(context.device)
        if decoder is not None:
            decoder.to(context.device)
        evaluate = None if extractor is None else distance
        seen = train(
            training, out, metadata, evaluate, origin=started_from, early=early, decoder=decoder
        )
        report(seen, config, out, context, early)


def _real_images(
    method: "Method",
    teacher: "Denoiser",
    origin: dict[str, Any],
    data: Path | None,
    background: str,
    decoder: "LatentDecoder | None",
) -> "TrainingData | None":
    """Read the images that a method learns from beside its teacher, and check that they fit.

    Returns:
        None for a method that needs none.
    """
    if not method.needs_images:
        if data is not None:
            raise UserError(
                f"--data changes nothing here: {method.name} learns from its teacher alone"
            )
        method.check(teacher, None)
        return None
    space = None if decoder is None else decoder.space
    dataset = read_training_data(data, teacher.config.img_resolution, background, space)
    method.check(teacher, dataset)
    # A released file holds no names of its classes, nor does the archive that EDM's tool writes.
    numbers = [str(number) for number in range(len(dataset.classes))]
    expected, classes = list(origin["classes"]), list(dataset.classes)
    if expected != classes and numbers not in (expected, classes):
        raise UserError(
            f"the images of {dataset.name} are of the classes {_listed(classes)}, the teacher of "
            f"{_listed(expected)}: {method.name} needs images of its classes, in its order"
        )
    return dataset


def _listed(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _numbers(text: str) -> list[float]:
    """Read numbers with commas between, or a file of one number a line."""
    from distill.text_files import named_file, read_text

    source = named_file(text)
    parts = text.split(",") if source is None else read_text(source).replace(",", " ").split()
    try:
        return [float(part) for part in parts]
    except ValueError as error:
        raise UserError(
            f"--class-frequencies {text}: {error}; expected numbers with commas between, or a "
            "file with one a line"
        ) from None


def _difference(recipe: "NetworkLayout", teacher: "NetworkLayout") -> str | None:
    """In what a teacher is of another kind than the recipe is for, if in anything."""
    for name, what in (("img_resolution", "pixels a side"), ("label_dim", "classes")):
        meant, given = getattr(recipe, name), getattr(teacher, name)
        if meant != given:
            return f"the recipe is for {meant} {what}, this teacher has {given}"
    if recipe.preconditioning != teacher.preconditioning:
        return (
            f"the recipe is for the preconditioning {recipe.preconditioning}, this teacher has "
            f"{teacher.preconditioning}"
        )
    return None


def _origin(teacher: Path, features: str, recipe: str) -> dict[str, Any]:
    """What the run starts from, for those who analyse it."""
    from service.bundle import sha256_file

    return {
        "teacher": str(teacher.resolve()),
        "teacher_sha256": sha256_file(teacher),
        "features": None if features == "none" else features,
        "recipe": recipe,
        "command": sys.argv,
    }
