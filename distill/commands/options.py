"""Options that several commands share, and what they come to."""

import os
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from distill.errors import UserError, first_line

if TYPE_CHECKING:
    import torch

    from distill.data.datasets import Dataset
    from distill.data.latents import TrainingData
    from distill.networks import Denoiser
    from distill.networks.latent_space import LatentSpace
    from distill.recipe import Recipe
    from distill.training.distributed import DistributedContext
    from distill.training.early_end import EarlyEnd
    from distill.training_config import DistillationConfig, LoopConfig, TrainingPrecision

Config = TypeVar("Config", bound="LoopConfig")

RecipeOption = Annotated[
    str, typer.Option(help="A shipped recipe's name, or a .toml file: network, length and rates.")
]
TeacherOption = Annotated[Path, typer.Option(help="The teacher: a network.safetensors.")]
DataOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder with Fashion-MNIST's four idx files; or a folder or .zip of images, one "
        "sub-folder a class, or as EDM's dataset_tool writes it. Left out: where Debian's "
        "dataset-fashion-mnist puts them.",
        show_default=False,
    ),
]
LearnedDataOption = Annotated[
    Path | None,
    typer.Option(
        help="As of --data elsewhere; or, for a network of latents, a folder of 'sid-distill "
        "latents'.",
        show_default=False,
    ),
]
AutoencoderOption = Annotated[
    Path | None,
    typer.Option(
        help="The autoencoder of a network of latents: a .safetensors file that 'sid-distill "
        "import' or 'sid-distill autoencoder' wrote, or diffusers'; or a light decoder of "
        "'sid-distill decoder'. Left out: the recipe's, or the one that the network's file names.",
        show_default=False,
    ),
]
BackgroundOption = Annotated[
    str,
    typer.Option(help="Colour behind transparent pixels of images: a CSS name or '#rrggbb'."),
]
OutFolder = Annotated[
    Path,
    typer.Option(help="The run's folder. One that holds a run is resumed; on a CPU to the bit."),
]
DeviceOption = Annotated[
    str, typer.Option(help="'auto' takes CUDA where there is one; or 'cpu', 'cuda', 'cuda:1'.")
]


def default_from_recipe(text: str) -> Any:
    """Make an option that replaces one number of the recipe."""
    return typer.Option(help=f"{text} Left out: the recipe's.", show_default=False)


ImagesOption = Annotated[int | None, default_from_recipe("Stop after this many images.")]
BatchOption = Annotated[int | None, default_from_recipe("Images a step.")]
LrOption = Annotated[float | None, default_from_recipe("Adam's learning rate.")]
HalflifeOption = Annotated[
    float | None, default_from_recipe("Images in which a weight's share in the average halves.")
]
MicrobatchOption = Annotated[
    int | None,
    default_from_recipe(
        "Images a network call, at most: fewer take less memory, gradients add up."
    ),
]
PrecisionOption = Annotated[
    str | None,
    typer.Option(
        help="float32, tf32 (CUDA), bfloat16 or float16 (CUDA, with the paper's scaling). Left "
        "out: the recipe's. Of a recipe that names none: that of the run that is resumed; for a "
        "new one bfloat16 on CUDA cards that have it, float32 elsewhere.",
        show_default=False,
    ),
]
AugmentOption = Annotated[
    float | None,
    default_from_recipe("Probability of each augmentation of what the denoiser learns from."),
]
ShardOption = Annotated[
    bool,
    typer.Option(
        help="Under torchrun: spread the networks over the processes (FSDP2) instead of copying "
        "them to each."
    ),
]
CudaGraphOption = Annotated[
    bool,
    typer.Option(
        "--no-cuda-graph",
        help="On CUDA: launch a step's kernels one by one, instead of capturing them as CUDA "
        "graphs after a few steps.",
    ),
]


class Compile(StrEnum):
    """Whether the networks of a training are compiled: `distill.training.form_choice`."""

    auto = "auto"
    on = "on"
    off = "off"


CompileOption = Annotated[
    Compile,
    typer.Option(
        "--compile",
        help="torch.compile for the networks. auto: on CUDA the fastest of compiled, channels_last "
        "and NCHW, measured at the start in some seconds and up to a minute of compiling; on "
        "a CPU off. It changes how fast a run is and how sums are rounded, nothing else (but for "
        "dropout's draws in NCHW).",
    ),
]
SeedOption = Annotated[int | None, default_from_recipe("Start of every random stream.")]


def read_recipe(name: str, method: str | None = None) -> "tuple[Recipe, DistillationConfig]":
    """Read a recipe and the section of a method of it, all of it checked.

    A method without a section of its own takes entries over from the recipe's first, and a line
    on stderr says which. Of several processes that torchrun started, the first says it.

    Args:
        name: a shipped recipe's, or a .toml file.
        method: the method's name; None: that of the recipe's first section.

    Raises:
        UserError: there is no such recipe or method, or an entry is unknown, missing or out of
            range.
    """
    from distill.methods.registry import method_section, taken_over
    from distill.recipe import load_recipe

    recipe = load_recipe(name)
    section = method_section(recipe, name, method)
    if method not in (None, *recipe.methods) and os.environ.get("RANK", "0") == "0":
        taken, left = taken_over(recipe, str(method))
        typer.echo(
            f"note: the recipe {name} has no section [{method}]: it takes {_listed(taken)} from "
            f"[{recipe.method}]" + (f", and has no use for {_listed(left)}" if left else ""),
            err=True,
        )
    return recipe, section


def _listed(names: Iterable[str]) -> str:
    """Names in a sentence: 'a, b and c'."""
    *others, last = [*names] or ["nothing"]
    return f"{', '.join(others)} and {last}" if others else last


def read_teacher(file: Path) -> "tuple[Denoiser, dict[str, Any]]":
    """Read a teacher, in eval mode, and its metadata; raise UserError if it is none."""
    from distill.checkpoints import load_network

    network, metadata = load_network(file)
    if metadata["role"] != "teacher":
        raise UserError(f"{file} is a {metadata['role']}: --teacher takes a teacher")
    return network, metadata


def read_images(
    data: Path | None,
    resolution: int | None,
    background: str = "white",
    split: str = "train",
) -> "Dataset":
    """Read a data set as `load_dataset` does, and say in one line what was read.

    The line goes to stderr, for some commands print results to be read by programs. Of several
    processes that torchrun started, the first says it.
    """
    from distill.data.datasets import load_dataset

    dataset = load_dataset(data, split, resolution, background)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(dataset.summary, err=True)
    return dataset


def read_training_data(
    data: Path | None, resolution: int, background: str, space: "LatentSpace | None"
) -> "TrainingData":
    """Read what a network learns from: images, or latents for a network of these.

    Args:
        data: where it lies.
        resolution: of the network.
        background: see `read_images`.
        space: the latents that the network draws; None: it draws pixels.

    Raises:
        UserError: it cannot be read, or is of the other kind.
    """
    if space is None:
        return read_images(data, resolution, background)
    from distill.data.latents import read_latents

    dataset = read_latents(named_latents(data), space)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(dataset.summary, err=True)
    return dataset


def named_latents(data: Path | None) -> Path:
    """The folder of latents that --data names; raise UserError if it names none."""
    if data is None:
        raise UserError("the network learns latents: name a folder of them with --data")
    return data


def chosen_device(name: str) -> "torch.device":
    """The torch device of that name; raise UserError where there is none."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"device {name!r} cannot be used here ({first_line(error)}): try cpu"
        ) from None
    return device


def with_precision(
    config: Config,
    named: bool,
    context: "DistributedContext",
    kept: "Callable[[], TrainingPrecision | None]",
) -> Config:
    """Choose the precision of a run for which none was named. Process 0 chooses, for all.

    Args:
        config: of the run.
        named: whether --precision or the recipe named the one that `config` has.
        context: the processes of the run, and their device.
        kept: looks up in which precision a run that is resumed began; None for a new run.

    Raises:
        UserError: this device cannot go on in the precision of the run that is resumed.
    """
    from distill.recipe import override
    from distill.training.precision import default_precision, explain_lacking

    begun = context.broadcast_from_main(kept() if context.is_main else None)
    chosen = config.precision if named else begun
    if chosen is None:
        chosen = context.broadcast_from_main(default_precision(context.device))
        if context.is_main and chosen != "float32":
            typer.echo(f"precision {chosen}: this card has it, and nobody named another")
    if chosen == begun and (lacking := explain_lacking(chosen, context.device)):
        raise UserError(
            f"this run began in {begun}, which {lacking}: go on with it on such a device, or begin "
            "another with --precision float32 and another --out"
        )
    return override(config, precision=chosen)


def begun_precision(out: Path) -> "TrainingPrecision | None":
    """The precision of the run in a folder, as its state has it; None where there is none."""
    from distill.checkpoints import load_settings
    from distill.training_config import LoopConfig, current_precision

    state = out / "state.pt"
    if not state.is_file():
        return None
    word = load_settings(state).get("precision", LoopConfig.model_fields["precision"].default)
    begun: TrainingPrecision = current_precision(word)
    return begun


def report(
    seen: int,
    config: "LoopConfig",
    out: Path,
    context: "DistributedContext",
    early: "EarlyEnd | None" = None,
) -> None:
    """Say how far a run came, once; one that was stopped exits with 130."""
    stopped = seen < (config.total_images if early is None else early.end(config.total_images))
    if context.is_main and stopped:
        typer.echo(f"stopped at {seen} images; the same command goes on from there")
    elif context.is_main:
        ended = ""
        if early is not None:
            by_images = "; --images ended it, before its trend could"
            ended = by_images if early.since is None else f"; it ended early, for {early.why}"
        typer.echo(f"{seen} images: {out / 'network.safetensors'}{ended}")
    if stopped:
        raise typer.Exit(130)
