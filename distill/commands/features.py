"""`sid-distill features`."""

from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import BackgroundOption, DataOption, read_images
from distill.errors import UserError


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
    thumbnail: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Side of a thumbnail that the features must be able to paint, so that they keep "
            "the colours and parts that vary within a class; 0: the class alone. Left out: a "
            "quarter of the images' side.",
            show_default=False,
        ),
    ] = None,
    test: Annotated[
        Path | None,
        typer.Option(
            help="Held-out images, a folder or .zip, to measure it on. Left out: those that "
            "--data brings, as Fashion-MNIST does.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train the classifier whose features the Fréchet distance compares."""
    from distill.data.datasets import has_test_split
    from distill.evaluation.classifier import save_classifier, train_extractor

    train_set = read_images(data, resolution, background)
    test_set = None
    if test is not None:
        test_set = read_images(test, resolution, background, "test")
    elif has_test_split(data):
        test_set = read_images(data, resolution, background, "test")
    if test_set is not None and test_set.classes != train_set.classes:
        raise UserError(f"{test} has other classes than {data}: measure on the same")
    side = train_set.images.shape[-1]
    extractor = train_extractor(
        out.stem,
        train_set,
        test_set,
        epochs,
        seed,
        thumbnail=side // 4 if thumbnail is None else thumbnail,
    )
    save_classifier(out.with_suffix(".safetensors"), extractor)
    assert extractor.metadata is not None
    typer.echo(extractor.metadata.model_dump_json(indent=2))
