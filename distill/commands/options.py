"""Options that several commands share, and what they come to."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from distill.errors import UserError

if TYPE_CHECKING:
    import torch

    from distill.recipe import LoopConfig

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


def recipes_own(text: str) -> Any:
    """Make an option that replaces one number of the recipe."""
    return typer.Option(help=f"{text} Left out: the recipe's.", show_default=False)


ImagesOption = Annotated[int | None, recipes_own("Stop after this many images.")]
BatchOption = Annotated[int | None, recipes_own("Images a step.")]
LrOption = Annotated[float | None, recipes_own("Adam's learning rate.")]
HalflifeOption = Annotated[
    float | None, recipes_own("Images in which a weight's share in the average halves.")
]
SeedOption = Annotated[int | None, recipes_own("Start of every random stream.")]


def chosen_device(name: str) -> "torch.device":
    """The torch device of that name; raise UserError where there is none."""
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


def report(seen: int, config: "LoopConfig", out: Path) -> None:
    """Say how far a run came; one that was stopped exits with 130."""
    if seen < config.total_images:
        typer.echo(f"stopped at {seen} images; the same command goes on from there")
        raise typer.Exit(130)
    typer.echo(f"{seen} images: {out / 'network.safetensors'}")
