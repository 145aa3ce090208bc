"""`sid-distill publish`."""

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from distill.commands.options import AutoencoderOption


class LowPrecision(StrEnum):
    """What a bundle may hold besides float32."""

    bfloat16 = "bfloat16"
    float16 = "float16"


class TritonPrecision(StrEnum):
    """In which Triton may compute on processors and GPUs alike."""

    float32 = "float32"
    float16 = "float16"


class TritonAccelerator(StrEnum):
    """What computes the graph where Triton has a GPU."""

    cuda = "cuda"
    tensorrt = "tensorrt"


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
    autoencoder: AutoencoderOption = None,
    models: Annotated[Path, typer.Option(help="The catalogue's folder.")] = Path("models"),
    description: Annotated[
        str,
        typer.Option(
            help="A sentence for the catalogue. Left out: the one in the generator's file, which "
            "the recipe of its teacher gave it.",
            show_default=False,
        ),
    ] = "",
    licence: Annotated[
        str | None,
        typer.Option(
            help="Licence of the weights (SPDX). Left out: the one in the generator's file, "
            "which 'import', a recipe or its teacher gave it. Where that one forbids commercial "
            "use this one has to.",
            show_default=False,
        ),
    ] = None,
    precision: Annotated[
        list[LowPrecision] | None,
        typer.Option(
            help="Hold the network in this precision too; repeat it for more. float16 makes two "
            "graphs: one for every engine, and one that ONNX Runtime computes faster on NVIDIA "
            "GPUs."
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="A .png of what every graph drew, and its difference from torch."),
    ] = None,
    triton_precision: Annotated[
        TritonPrecision,
        typer.Option(
            help="In which precision Triton serves the model; the bundle holds it too then. The "
            "gateway holds Triton to the bounds of that precision."
        ),
    ] = TritonPrecision.float32,
    triton_accelerator: Annotated[
        TritonAccelerator,
        typer.Option(
            help="Where Triton has a GPU: cuda is ONNX Runtime's own kernels; tensorrt builds an "
            "engine at the first start, which takes minutes, and keeps it in "
            "/var/cache/tensorrt."
        ),
    ] = TritonAccelerator.cuda,
    triton_plan: Annotated[
        Path | None,
        typer.Option(
            help="TensorRT's plan of the graph in that precision, which Triton serves instead. It "
            "works on the kind of GPU and the TensorRT release that it was built with.",
            show_default=False,
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="Sign the bundle with this private key (Ed25519, PEM; openssl genpkey -algorithm "
            "ed25519 makes one), for gateways that serve signed ones alone.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Export a generator, validate its graphs against torch, write its bundle to models/NAME/."""
    from distill.export.publish import publish as publish_bundle
    from distill.export.triton import TritonOptions
    from service.bundle import FAR, PLAN, SIGNATURE_NAME, describe_signature, load_manifest

    was_signed = (models / name / SIGNATURE_NAME).exists()
    folder = publish_bundle(
        generator,
        teacher,
        name,
        description,
        licence,
        models,
        [choice.value for choice in precision or []],
        report,
        TritonOptions(
            triton_precision.value,
            tensorrt=triton_accelerator is TritonAccelerator.tensorrt,
            plan=triton_plan,
        ),
        sign,
        autoencoder,
    )
    manifest = load_manifest(folder)
    if not manifest.description:
        typer.echo(
            "note: the catalogue says nothing about this model: publish it again with "
            "--description 'A sentence'",
            err=True,
        )
    if was_signed and sign is None:
        typer.echo(
            "warning: the version before was signed and this one is not: gateways that ask for a "
            "signature refuse it; publish it again with --sign KEY",
            err=True,
        )
    if misleading := manifest.misleading_names():
        first, other = next(iter(misleading.items()))
        typer.echo(
            f"warning: {len(misleading)} class names are other classes' indices, and a number in a "
            f"request is an index: {first} draws the class named {other!r}. Ask for these classes "
            f"by index (GET /models/{name} lists them), or train with other names",
            err=True,
        )
    for file, graph in manifest.graphs.items():
        if file == PLAN:
            typer.echo(f"{file}: {graph.precision}; not run here: the gateway's canary proves it")
            continue
        measured = graph.measured
        change = measured.distance_change
        typer.echo(
            f"{file}: {graph.precision}; differs from torch by up to {measured.difference} levels "
            f"in {measured.differing_share:.2%} of the values over {measured.images} images, by "
            f"{measured.mean_difference:.2f} on average in 99 of 100 of them, alone from in a "
            f"batch by {measured.batch_difference}"
            + ("" if change is None else f"; distance {change:+.2%}")
        )
        if imitation := measured.imitation:
            change = imitation.distance_change
            typer.echo(
                f"{file}: the light decoder differs from the one that it imitates by "
                f"{imitation.mean_difference:.1f} levels on average, and in "
                f"{imitation.far_share:.2%} of the values by more than {FAR}"
                + ("" if change is None else f"; distance {change:+.2%}")
            )
        elif "light_decoder" in manifest.training:
            typer.echo(
                f"{file}: the decoder that the light one imitates is not at hand: they were not "
                "compared"
            )
    inherited = manifest.training.get("licence", manifest.licence)
    note = "" if inherited == manifest.licence else f", as told; its own file says {inherited}"
    typer.echo(f"licence: {manifest.licence}{note}")
    if sign is not None:
        typer.echo(f"signed by the key {describe_signature(folder, None)}")
    typer.echo(published(folder, models, name))


def published(folder: Path, models: Path, name: str) -> str:
    """Say where a model is, with a command that draws with it."""
    command = ["sid", "generate", "--models", str(models), "--model", name, "--seed", "0"]
    return f"{folder} is published: {shlex.join(command)}"
