"""`sid-distill run`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from distill.commands.options import (
    AugmentOption,
    BatchOption,
    Compile,
    CompileOption,
    CudaGraphOption,
    DeviceOption,
    HalflifeOption,
    ImagesOption,
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
    report,
    with_precision,
)
from distill.commands.stopping import StopOption, early_end, with_stop
from distill.errors import UserError
from distill.training.allocator import keep_freed_memory

if TYPE_CHECKING:
    from distill.networks import Denoiser, NetworkLayout
    from distill.training.distributed import DistributedContext
    from distill.training_config import DistillationConfig


def run(
    out: OutFolder,
    teacher: TeacherOption,
    recipe: RecipeOption = "fashion",
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
    """Distil a teacher into a one-step generator, without data (SiD).

    The result is OUT/network.safetensors; OUT/curve.jsonl holds the distance along the way, and
    precision and recall if --reference holds features.
    """
    keep_freed_memory()
    from distill.evaluation.evaluate import measure, one_step_sampler
    from distill.evaluation.feature_stats import checked_reference
    from distill.evaluation.features import load_extractor
    from distill.evaluation.precision_recall import IMAGES_ALONG_A_RUN
    from distill.evaluation.reference import bundled_reference, load_references
    from distill.methods.registry import METHODS
    from distill.recipe import override
    from distill.training.distillation import Distillation
    from distill.training.distributed import join_process_group
    from distill.training.loop import train

    chosen, section = read_recipe(recipe)
    network, origin = read_teacher(teacher)
    if difference := _difference(chosen.network, network.config):
        typer.echo(f"note: {difference}; its rates may not suit", err=True)
    start = None if generator is None else _start(generator, network, origin, sigma_init)
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
        augment=augment,
        dropout=dropout,
        class_frequencies=class_frequencies and _numbers(class_frequencies),
        ema_halflife=ema_halflife,
        seed=seed,
    )
    extractor_name = features or chosen.features or "none"
    extractor, real, metrics = None, None, list[str]()
    if extractor_name != "none":
        extractor = load_extractor(extractor_name)
        extractor.check_fits(network, origin["classes"])
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
        config = with_precision(given, named, context, lambda: begun_precision(out))
        config = with_stop(config, stop, extractor_name, out, context)
        early = early_end(config, out)
        if not fixed:
            config = _with_fitting_level(config, network, out, started_from, context)
        metadata = (
            origin
            | config.model_dump(exclude_none=True, exclude={"betas", "checkpoint_every"})
            | {
                "role": "generator",
                "recipe": recipe,
                "method": chosen.method,
                "teacher_images_seen": origin.get("images_seen"),
            }
        )
        if start is not None:
            metadata["started_from"] = start.described

        def distance(generator: "Denoiser") -> dict[str, Any]:
            assert extractor is not None
            sampler = one_step_sampler(generator, config.sigma_init)
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
            )
            rate = {"rate_share": training.rate_share}
            return {"features": extractor.name, **measured, **rate}

        method = METHODS[chosen.method](config)
        begins = None if start is None else start.network
        training = Distillation(method, network, context, begins, compile_networks.value)
        if extractor is not None:
            extractor.network.to(context.device)
        evaluate = None if extractor is None else distance
        seen = train(training, out, metadata, evaluate, origin=started_from, early=early)
        report(seen, config, out, context, early)


class _Start(NamedTuple):
    network: "Denoiser"
    sigma_init: float
    described: str


def _start(
    file: Path, teacher: "Denoiser", origin: dict[str, Any], sigma_init: float | None
) -> _Start:
    """Read the network in which a generator starts, and check that it fits."""
    from distill.checkpoints import load_network

    network, metadata = load_network(file)
    if metadata["role"] != "generator" or "sigma_init" not in metadata:
        raise UserError(
            f"{file} is no generator with a sigma_init: --generator takes a network of "
            "'sid-distill regress' or of a run"
        )
    shape = network.config.model_copy(update={"dropout": teacher.config.dropout})
    if shape != teacher.config or metadata["classes"] != origin["classes"]:
        raise UserError(
            f"{file} is of another shape or of other classes than the teacher: --generator takes "
            "one that began with this teacher"
        )
    if sigma_init not in (None, metadata["sigma_init"]):
        raise UserError(
            f"{file} denoises at sigma_init {metadata['sigma_init']:g}, not at {sigma_init:g}: "
            f"leave --sigma-init out"
        )
    described = f"{metadata.get('images_seen')} images of {metadata.get('method', 'sid')}"
    return _Start(network, metadata["sigma_init"], described)


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
    return None


def _with_fitting_level(
    config: "DistillationConfig",
    teacher: "Denoiser",
    out: Path,
    origin: dict[str, Any],
    context: "DistributedContext",
) -> "DistillationConfig":
    """Choose sigma_init by the teacher, show it, and note it in `origin`.

    A run that is resumed keeps the one that it began with, which its state holds. Process 0 looks,
    for all.
    """
    from distill.checkpoints import load_settings
    from distill.recipe import override
    from distill.training.start_level import fitting_sigma_init

    state, level = out / "state.pt", None
    if context.is_main and state.is_file():
        level = load_settings(state).get("sigma_init")
    level = context.broadcast_from_main(level)
    if level is None:
        level, spread = fitting_sigma_init(teacher.to(context.device).eval())
        level = context.broadcast_from_main(level)
        if context.is_main:
            typer.echo(
                f"sigma_init {level:g}: mean colours of the teacher's images of a class spread "
                f"by {spread:.2g}, times {teacher.config.img_resolution} pixels"
            )
    origin["sigma_init"] = level
    return override(config, sigma_init=level)


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
