"""`sid-distill export`."""

from pathlib import Path
from typing import Annotated

import typer


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
