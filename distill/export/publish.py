"""From a generator's weights to models/<name>/: graph, configuration, manifest."""

import json
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from distill.autoencoders import weights_sha256
from distill.errors import UserError
from distill.evaluation.feature_extractor import FeatureExtractor
from distill.evaluation.features import matching_extractor
from distill.evaluation.measurement import load_measurement
from distill.export.gate import draw_reference_images, save_report, validate
from distill.export.generator import Generator, load_generator
from distill.export.one_step import PixelGenerator
from distill.export.onnx import export_onnx
from distill.export.tensorrt import require_group_norms_that_tensorrt_computes
from distill.export.triton import DEFAULT_OPTIONS, TritonOptions, triton_config
from distill.export.variety import check_variety
from distill.licences import checked_licence, licence_of_both
from distill.networks.latent_space import LatentDecoder
from distill.training.precision import full_float32
from service.bundle import (
    BASELINE,
    CONFIG_NAME,
    CPU,
    CUDA,
    FILENAMES,
    LATENTS,
    MANIFEST_NAME,
    PLAN,
    TOLERANCES,
    BundleError,
    Golden,
    GoldenImage,
    Graph,
    KeyFileError,
    Manifest,
    Precision,
    Quality,
    first_error,
    latents,
    load_bundle,
    load_manifest,
    load_private_key,
    noise_and_class,
    sha256_file,
    triton_graph,
    write_manifest,
    write_signature,
)
from service.bundle.manifest import Name

# Their number, and what they may have together, but for the first two: the manifest holds them.
GOLDEN_IMAGES, _GOLDEN_PIXELS = 10, 2**18


@full_float32()
def publish(
    generator_file: Path,
    teacher_file: Path | None,
    name: str,
    description: str,
    licence: str | None,
    models: Path,
    precisions: Sequence[Precision] = (),
    report: Path | None = None,
    triton: TritonOptions = DEFAULT_OPTIONS,
    sign_with: Path | None = None,
    autoencoder: Path | None = None,
) -> Path:
    """Export a generator and write its bundle, whole or not at all.

    Every graph is validated against float32 torch first (`distill.export.gate`). The measured
    quality comes from what `sid-distill evaluate` wrote beside the two networks' files. Publishing
    a name again writes the next version; the folder is exchanged by two renames, and the version
    before stays in it, so that Triton serves both while gateways go over.

    Args:
        generator_file: the distilled network (.safetensors).
        teacher_file: its teacher, for the quality beside the generator's; None for no quality.
        name: of the bundle and its folder.
        description: one sentence for the catalogue; empty for the one in the generator's file,
            which its teacher's recipe gave it.
        licence: of the weights; None for the one that the generator's file states. One that
            permits commercial use where that file's forbids it is refused.
        models: the catalogue's folder.
        precisions: in which the bundle holds the network besides float32; float16 twice, once for
            every engine and once for ONNX Runtime on NVIDIA GPUs.
        report: where to save the validated images, as one PNG.
        triton: what Triton serves; the bundle holds the network in that precision too.
        sign_with: the private key (PEM) that signs the manifest; None: it is not signed.
        autoencoder: whose decoder stands behind a generator of latents; None: the one that the
            generator's file names.

    Returns:
        The bundle's folder.

    Raises:
        UserError: a file or the key is missing or of the wrong kind, the licence is not known or
            does not fit, the generator draws the same whatever it is asked for, the graph draws
            other images, a light decoder others than the one that it imitates, or TensorRT is to
            compute what it cannot.
    """
    _check_triton(triton)
    try:
        key = None if sign_with is None else load_private_key(sign_with)
    except KeyFileError as error:
        raise UserError(str(error)) from error
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise UserError(f"{name!r} cannot name a model: use a-z, 0-9, '.', '_', '-'") from None
    generator = load_generator(generator_file, autoencoder)
    metadata, module = generator.metadata, generator.module()
    if licence is None:
        licence = _licence(generator_file, generator)
    else:
        stated = metadata.get("licence", metadata.get("teacher_licence"))
        licence = checked_licence(licence, licence_of_both(stated, generator.decoder_licence))
    quality = None
    if teacher_file is not None:
        quality = _quality(generator_file, teacher_file, generator.decoder)
    folder = models / name
    models.mkdir(parents=True, exist_ok=True)
    _recover(folder)
    if folder.exists() and not (folder / MANIFEST_NAME).exists():
        raise UserError(f"{folder} exists and is no bundle: name another model, or move it away")
    version = _next_version(folder)
    staging = _beside(folder, "partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        inside = staging / str(version)
        _export_all(module, inside, {*precisions, triton.precision})
        if triton.tensorrt or triton.plan:
            require_group_norms_that_tensorrt_computes(inside / triton.source)
        expected = draw_reference_images(
            module, _extractor(module, metadata["classes"]), generator.imitated_decoder()
        )
        check_variety(module, metadata["classes"])
        validated = {path.name: validate(path, expected) for path in sorted(inside.iterdir())}
        if report is not None:
            save_report(report, expected, {name: pixels for name, (_, pixels) in validated.items()})
        graphs = {name: graph for name, (graph, _) in validated.items()}
        if triton.plan:
            shutil.copyfile(triton.plan, inside / PLAN)
            graphs[PLAN] = _plan_graph(graphs[triton.source], triton.source)
        manifest = Manifest(
            name=name,
            version=version,
            inputs=noise_and_class(
                expected.inputs[LATENTS].shape[1:], has_classes=bool(metadata["classes"])
            ),
            images=expected.pixels.shape[1:],
            classes=metadata["classes"],
            sigma_init=metadata["sigma_init"],
            steps=module.steps,
            files={f"{version}/{name}": sha256_file(inside / name) for name in graphs},
            graphs=graphs,
            licence=licence,
            description=description or metadata.get("description", ""),
            training=_training_metadata(metadata),
            quality=quality,
            golden=_golden(module),
        )
        configuration = staging / CONFIG_NAME
        served = PLAN if triton.plan else triton.source
        configuration.write_text(triton_config(manifest, graph=served, tensorrt=triton.tensorrt))
        files = manifest.files | {CONFIG_NAME: sha256_file(configuration)}
        write_manifest(staging, manifest.model_copy(update={"files": files}))
        if key is not None:
            write_signature(staging, key)
        _keep_previous(folder, staging, manifest)
        _exchange(staging, folder)
    except ValidationError as error:
        raise UserError(str(first_error(error))) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    load_bundle(folder, None if key is None else {key.public_key().public_bytes_raw()})
    return folder


def _check_triton(triton: TritonOptions) -> None:
    """Refuse options that contradict each other before anything is exported."""
    if triton.plan is None:
        return
    if triton.tensorrt:
        raise UserError(
            "--triton-accelerator is for a graph: a plan is computed by TensorRT as it is"
        )
    if not triton.plan.is_file():
        raise UserError(f"{triton.plan}: there is no such file; docs/operations.md builds a plan")


def _plan_graph(source: Graph, filename: str) -> Graph:
    """What the manifest says of a plan: its graph's bounds, and what was measured of its graph.

    Only the GPU that it was built for can draw with it, and that is not here. The gateway's canary
    holds it to the bounds there.
    """
    engine = f"{source.measured.engine} ({filename}, which the plan was built from)"
    measured = source.measured.model_copy(update={"engine": engine})
    return source.model_copy(update={"measured": measured})


def _licence(generator_file: Path, generator: Generator) -> str:
    licence = generator.licence
    if licence is None:
        unknown = str(generator_file)
        if "licence" in generator.metadata and generator.decoder is not None:
            unknown = f"the autoencoder {generator.decoder.space.autoencoder}"
        raise UserError(
            f"the licence of {unknown} is not known: say --licence, an SPDX identifier or a "
            "sentence, as its training images allow (CC-BY-4.0, say; LicenseRef-private for a "
            "model that nobody else may use)"
        )
    return licence


def _export_all(module: PixelGenerator, folder: Path, precisions: Collection[Precision]) -> None:
    drawing = module.generator, module.sigma_init
    form: dict[str, Any] = {"steps": module.steps, "decoder": module.decoder}
    export_onnx(*drawing, folder / BASELINE, **form)
    export_onnx(*drawing, folder / CPU, cpu=True, **form)
    for name, precision in FILENAMES.items():
        if precision in precisions and precision != "float32":
            export_onnx(*drawing, folder / name, precision, cuda=name == CUDA, **form)


def _extractor(module: PixelGenerator, classes: list[str]) -> FeatureExtractor | None:
    """The feature extractor that knows what a generator draws, if one is shipped."""
    try:
        return matching_extractor(module.image_shape, classes)
    except UserError:
        return None


def _next_version(folder: Path) -> int:
    try:
        return load_manifest(folder).version + 1
    except BundleError:
        return 1


def _keep_previous(folder: Path, staging: Path, new: Manifest) -> None:
    """Copy the version that is published now, if any, and an operator's own Triton settings.

    Not where the two differ in what goes in and out, or in which of their graphs Triton serves:
    it has one configuration for both.
    """
    try:
        previous = load_manifest(folder)
    except BundleError:
        return
    if previous.signature != new.signature:
        return
    if triton_graph(folder, previous) != triton_graph(staging, new):
        return
    for kept in (str(previous.version), "configs"):
        if (folder / kept).is_dir():
            shutil.copytree(folder / kept, staging / kept)


def _beside(folder: Path, purpose: str) -> Path:
    """A path to build or keep a bundle at, from where a rename brings it to `folder`.

    Not in the catalogue, where Triton takes every folder for a model; unless that is a file system
    of its own.
    """
    models = folder.parent.resolve()
    outside = models.parent
    if outside.stat().st_dev != models.stat().st_dev:
        outside = models
    return outside / f".{models.name}-{folder.name}.{purpose}"


def _recover(folder: Path) -> None:
    """Undo an exchange that a kill cut in half: the old bundle goes back to its place."""
    retired = _beside(folder, "retired")
    if retired.exists() and not folder.exists():
        retired.rename(folder)
    shutil.rmtree(retired, ignore_errors=True)


def _exchange(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder`; whatever happens, one of the two is there."""
    try:
        if folder.exists():
            folder.rename(_beside(folder, "retired"))
        staging.rename(folder)
    finally:
        _recover(folder)


def _training_metadata(metadata: Mapping[str, Any]) -> dict[str, str | int | float]:
    """What a generator's header says of its training, as a manifest holds it.

    A manifest holds text and numbers; a list, such as the frequencies of the classes, is written
    as JSON.
    """
    return {
        name: value if isinstance(value, str | int | float) else json.dumps(value)
        for name, value in metadata.items()
        if name not in ("role", "classes", "description")
    }


def _quality(generator_file: Path, teacher_file: Path, decoder: LatentDecoder | None) -> Quality:
    one_step = load_measurement(generator_file, "generator")
    teacher = load_measurement(teacher_file, "teacher")
    if decoder is not None:
        published = weights_sha256(decoder.decoder)
        if (one_step.decoder_sha256 or decoder.space.sha256) != published:
            command = ["sid-distill", "evaluate", str(generator_file), "--autoencoder"]
            raise UserError(
                f"{generator_file} was measured with another decoder than the one to publish: run "
                f"{shlex.join([*command, str(decoder.space.file)])}, or leave --teacher out"
            )
    if not one_step.is_comparable(teacher):
        raise UserError(
            "generator and teacher were measured differently: evaluate both over the same "
            "--features, --reference, --protocol, --images and --first-seed"
        )
    return Quality(
        distance=one_step.names["distance"],
        images=one_step.images,
        reference=one_step.reference,
        generator=one_step.distance,
        teacher=teacher.distance,
        teacher_evaluations=teacher.evaluations,
        accuracy=one_step.accuracy,
        real_accuracy=one_step.real_accuracy,
    )


def _golden(module: PixelGenerator) -> Golden:
    """Draw a few images, of as many classes as there are, by float32 torch."""
    config = module.generator.config
    _, height, width = module.image_shape
    seeds = range(min(GOLDEN_IMAGES, max(2, _GOLDEN_PIXELS // (height * width))))
    labels = [seed % config.label_dim if config.label_dim else None for seed in seeds]
    z = torch.from_numpy(latents(seeds, config.latent_shape))
    with torch.no_grad():
        pixels = module(z, torch.tensor(labels)) if config.label_dim else module(z)
    images = [
        GoldenImage.from_pixels(image, class_label=label, seed=seed)
        for image, label, seed in zip(pixels.numpy(), labels, seeds, strict=True)
    ]
    return Golden(
        max_difference=TOLERANCES["float32"].max_difference,
        max_differing_share=TOLERANCES["float32"].max_differing_share,
        images=images,
    )
