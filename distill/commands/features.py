"""`sid-distill features`."""

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import BackgroundOption, DataOption, read_images


def features(
    out: Annotated[
        Path, typer.Option(help="The .safetensors file to write; its stem is its name.")
    ],
    data: DataOption = None,
    resolution: Annotated[
        int, typer.Option(min=8, help="Size to which your images are scaled: the recipe's.")
    ] = 28,
    background: BackgroundOption = "white",
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="Start of the random stream.")] = 0,
) -> None:
    """Train the classifier whose features the Fréchet distance compares."""
    from distill.data import has_test_split
    from distill.evaluation.classifier import save_classifier, train_detector

    train_set = read_images(data, resolution, background)
    test_set = read_images(data, resolution, background, "test") if has_test_split(data) else None
    detector = train_detector(out.stem, train_set, test_set, epochs, seed)
    save_classifier(out.with_suffix(".safetensors"), detector)
    assert detector.facts is not None
    typer.echo(detector.facts.model_dump_json(indent=2))
