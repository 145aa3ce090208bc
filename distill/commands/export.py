"""`sid-distill export`."""

from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from distill.commands.options import AutoencoderOption


class Engine(StrEnum):
    """What the file is for."""

    onnx = "onnx"
    cpu = "cpu"
    cuda = "cuda"
    tensorrt = "tensorrt"
    rtx = "tensorrt-rtx"


class GraphPrecision(StrEnum):
    """In which the network computes."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


# The engines that compute in one precision alone.
_ONLY = {Engine.cpu: GraphPrecision.float32, Engine.cuda: GraphPrecision.float16}


def export(
    generator: Annotated[Path, typer.Argument(help="A generator's .safetensors.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")],
    engine: Annotated[
        Engine,
        typer.Option(
            help="onnx: the graph that every engine reads; cpu: the same, faster on processors; "
            "cuda: the same in float16, for ONNX Runtime on NVIDIA GPUs alone; "
            "tensorrt: a plan for this machine's GPU; tensorrt-rtx: one by TensorRT for RTX, "
            "which needs no GPU to build."
        ),
    ] = Engine.onnx,
    precision: Annotated[
        GraphPrecision | None,
        typer.Option(
            help="In which the network computes. Left out: float16 with --engine cuda, else "
            "float32.",
            show_default=False,
        ),
    ] = None,
    autoencoder: AutoencoderOption = None,
    capability: Annotated[
        str | None, typer.Option(help="With tensorrt-rtx: the card to build for, e.g. SM89.")
    ] = None,
) -> None:
    """Write a generator as one file, from latents and labels to uint8 pixels.

    It is not validated: 'publish' does that.
    """
    from distill.errors import UserError
    from distill.export.generator import load_generator
    from distill.export.onnx import export_onnx
    from distill.export.tensorrt import Builder, build_plan
    from distill.export.triton import max_batch_size

    loaded = load_generator(generator, autoencoder)
    drawing = loaded.network, loaded.metadata["sigma_init"]
    if capability is not None and engine is not Engine.rtx:
        raise UserError("--capability belongs to --engine tensorrt-rtx")
    only = _ONLY.get(engine)
    if only and precision and precision is not only:
        raise UserError(f"--engine {engine} is {only} only")
    chosen = precision or only or GraphPrecision.float32
    form: dict[str, Any] = {
        "steps": loaded.metadata.get("steps", 1), "decoder": loaded.decoder,
    }  # fmt: skip
    if engine in (Engine.onnx, Engine.cpu, Engine.cuda):
        form |= {"cpu": engine is Engine.cpu, "cuda": engine is Engine.cuda}
        export_onnx(*drawing, out, chosen.value, **form)
    else:
        with TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            export_onnx(*drawing, graph, chosen.value, **form)
            largest = max_batch_size(loaded.module().image_shape[1:])
            build_plan(graph, out, Builder(engine.value), largest, capability)
    licence = loaded.licence or "not known"
    typer.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB; licence: {licence}")
