"""`sid-distill export`."""

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer


class Engine(StrEnum):
    """What the file is for."""

    onnx = "onnx"
    cpu = "cpu"
    tensorrt = "tensorrt"
    rtx = "tensorrt-rtx"


class GraphPrecision(StrEnum):
    """In which the network computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def export(
    generator: Annotated[Path, typer.Argument(help="A generator's .safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    engine: Annotated[
        Engine,
        typer.Option(
            help="onnx: the graph that every engine reads; cpu: the same, faster on processors; "
            "tensorrt: a plan for this machine's GPU; tensorrt-rtx: one by TensorRT for RTX, "
            "which needs no GPU to build."
        ),
    ] = Engine.onnx,
    precision: Annotated[
        GraphPrecision, typer.Option(help="In which the network computes.")
    ] = GraphPrecision.float32,
    capability: Annotated[
        str | None, typer.Option(help="With tensorrt-rtx: the card to build for, e.g. SM89.")
    ] = None,
) -> None:
    """Write a generator as one file, from latents and labels to uint8 pixels.

    It is not validated: 'publish' does that.
    """
    from distill.errors import UserError
    from distill.export.onnx import export_onnx
    from distill.export.publish import load_generator
    from distill.export.tensorrt import Builder, build_plan

    network, metadata = load_generator(generator)
    sigma_init = metadata["sigma_init"]
    if capability is not None and engine is not Engine.rtx:
        raise UserError("--capability belongs to --engine tensorrt-rtx")
    if engine is Engine.cpu:
        if precision is not GraphPrecision.float32:
            raise UserError("--engine cpu is float32 only")
        export_onnx(network, sigma_init, out, cpu=True)
    elif engine is Engine.onnx:
        export_onnx(network, sigma_init, out, precision.value)
    else:
        with TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            export_onnx(network, sigma_init, graph, precision.value)
            build_plan(graph, out, Builder(engine.value), capability=capability)
    licence = metadata.get("licence", "not known")
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB; licence: {licence}")
