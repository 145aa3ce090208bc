"""Export and publish: the graph draws what torch draws, and the gateway serves the bundle."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from distill.checkpoints import save_network
from distill.errors import UserError
from distill.evaluation.measurement import Measurement, save_measurement
from distill.export.one_step import FoldedGenerator, PixelGenerator
from distill.export.onnx import example_inputs, export_onnx
from distill.export.publish import publish
from distill.export.tensorrt import Builder, build_plan
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from service.bundle import Tolerance, latents, load_bundle, sha256_file


def network(label_dim, patch_size=1):
    torch.manual_seed(0)
    config = EdmConfig(
        img_resolution=8 * patch_size, img_channels=3, patch_size=patch_size, label_dim=label_dim,
        model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.1,
    )  # fmt: skip
    denoiser = Denoiser(config).eval()
    with torch.no_grad():  # an untrained network's output layer is near zero: wake it up
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.slow
@pytest.mark.parametrize(
    ("patch_size", "label_dim"),
    [
        (1, 3),
        (2, 0),
        pytest.param(1, 0, marks=pytest.mark.long),
        pytest.param(2, 3, marks=pytest.mark.long),
    ],
)
def test_the_graph_draws_what_torch_draws(tmp_path, export_once, label_dim, patch_size):
    denoiser = network(label_dim, patch_size)
    export_once(denoiser, 2.5, tmp_path / "model.onnx")
    for batch in (1, 5):
        assert_draws_alike(denoiser, tmp_path / "model.onnx", batch, patch_size)


def assert_draws_alike(denoiser, graph, batch, patch_size):
    inputs = example_inputs(denoiser, batch)
    with torch.no_grad():
        expected = PixelGenerator(denoiser, 2.5)(*inputs).numpy()
    session = onnxruntime.InferenceSession(graph)
    names = ["latents", "class_labels"]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=False)}
    (images,) = session.run(["images"], feed)
    assert images.shape == (batch, 8 * patch_size, 8 * patch_size, 3)
    assert images.dtype == np.uint8
    assert images.std() > 10, "a flat image would prove nothing"
    difference = np.abs(images.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.slow
def test_the_graph_is_reproducible_and_tells_nothing_of_this_machine(tmp_path, export_once):
    export_once(network(3), 2.5, tmp_path / "a.onnx")
    export_onnx(network(3), 2.5, tmp_path / "b.onnx")
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    for trace in (b"site-packages", b"/work/", b"distill/", b".py"):
        assert trace not in content
    operators = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert {"GroupNormalization", "Gather"} <= operators
    assert not operators & {"RandomNormal", "Dropout", "Sin", "Cos", "Log", "GatherND", "Gemm"}


def save_generator(path, role="generator", label_dim=3):
    metadata = {"role": role, "classes": ["a", "b", "c"][:label_dim], "images_seen": 7, "lr": 1e-4}
    save_network(path, network(label_dim), metadata | {"sigma_init": 2.5, "data": "none"})
    return path


def measure(file, role, distance, evaluations):
    measurement = Measurement(
        role=role, network_sha256=sha256_file(file), features="fashion-cnn", features_sha256="f",
        reference="60000 training images", images=1000, first_seed=0, evaluations=evaluations,
        distance=distance, accuracy=0.9,
    )  # fmt: skip
    save_measurement(file, measurement)


@pytest.fixture(scope="module")
def first_version(tmp_path_factory):
    """A bundle that was published once."""
    folder = tmp_path_factory.mktemp("published")
    generator = save_generator(folder / "generator.safetensors")
    return publish(generator, None, "letters", "", "MIT", folder / "models")


@pytest.fixture
def models(first_version, tmp_path):
    """A folder of models with that bundle in it."""
    shutil.copytree(first_version, tmp_path / "models" / "letters")
    return tmp_path / "models"


@pytest.mark.slow
def test_a_published_bundle_verifies_and_states_its_quality(models, tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    teacher = save_generator(tmp_path / "teacher.safetensors", role="teacher")
    measure(generator, "generator", 1.5, 1)
    measure(teacher, "teacher", 2.5, 35)
    for version in (2, 3):  # publishing again makes the next version, and keeps the last
        folder = publish(generator, teacher, "letters", "Letters.", "MIT", models)
        manifest = load_bundle(folder).manifest
        assert manifest.version == version
        (folder / "configs").mkdir(exist_ok=True)  # an operator's (docs/operations.md)
    kept = {"2", "3", "config.pbtxt", "configs", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == kept
    assert manifest.classes == ["a", "b", "c"]
    written = json.loads((folder / "manifest.json").read_text())
    assert (written["format"], written["images"]) == (2, [8, 8, 3])
    assert written["inputs"] == [
        {"name": "latents", "kind": "noise", "dtype": "float32", "shape": [3, 8, 8]},
        {"name": "class_labels", "kind": "class", "dtype": "int64", "shape": []},
    ]
    assert manifest.quality is not None
    assert (manifest.quality.generator, manifest.quality.teacher) == (1.5, 2.5)
    assert manifest.quality.teacher_evaluations == 35
    assert "fashion-cnn" in manifest.quality.distance
    assert [path.name for path in models.iterdir()] == ["letters"], "nothing is left lying about"

    assert manifest.golden is not None
    session = onnxruntime.InferenceSession(folder / "3" / "model.onnx")
    for reference in manifest.golden.images:
        feed = {
            "latents": latents([reference.seed], (3, 8, 8)),
            "class_labels": np.array([reference.class_label], np.int64),
        }
        assert manifest.golden.mismatch(reference, session.run(None, feed)[0][0]) is None


@pytest.mark.long
@pytest.mark.slow
def test_an_unconditional_generator_is_published_without_classes(tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors", label_dim=0)
    folder = publish(generator, None, "plain", "", "MIT", tmp_path / "models")
    assert load_bundle(folder).manifest.classes == []
    assert "class_labels" not in (folder / "config.pbtxt").read_text()


def test_what_cannot_be_published_is_refused_and_leaves_the_catalogue_alone(tmp_path):
    teacher = save_generator(tmp_path / "teacher.safetensors", role="teacher")
    generator = save_generator(tmp_path / "generator.safetensors")
    models = tmp_path / "models"
    with pytest.raises(UserError, match="a generator is needed"):
        publish(teacher, None, "x", "", "MIT", models)
    with pytest.raises(UserError, match=r"quality.json is missing: run sid-distill evaluate"):
        publish(generator, teacher, "x", "", "MIT", models)
    with pytest.raises(UserError, match="cannot name a model"):
        publish(generator, None, "../elsewhere", "", "MIT", models)
    assert not models.exists() or not list(models.iterdir())


def test_quality_is_stated_of_these_weights_only(tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    teacher = save_generator(tmp_path / "teacher.safetensors", role="teacher")
    measure(generator, "generator", 1.5, 1)
    measure(teacher, "generator", 2.5, 35)
    with pytest.raises(UserError, match="is a generator, not a teacher"):
        publish(generator, teacher, "x", "", "MIT", tmp_path / "models")
    save_network(generator, network(3), {"role": "generator", "classes": list("abc"),
                                         "images_seen": 8, "sigma_init": 2.5})  # fmt: skip
    with pytest.raises(UserError, match=r"measured before generator.safetensors changed"):
        publish(generator, teacher, "x", "", "MIT", tmp_path / "models")


def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "precious").touch()
    with pytest.raises(UserError, match="exists and is no bundle"):
        publish(generator, None, "runs", "", "MIT", tmp_path)
    assert (tmp_path / "runs" / "precious").exists()


@pytest.mark.slow
def test_a_publish_that_was_killed_half_way_is_undone_by_the_next(models, tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    folder = models / "letters"
    folder.rename(tmp_path / ".models-letters.retired")  # as after the first of the two renames
    publish(generator, None, "letters", "", "MIT", models)
    assert load_bundle(folder).manifest.version == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["models"]


@pytest.mark.slow
def test_what_is_built_never_lies_where_triton_would_take_it_for_a_model(
    tmp_path, export_once, monkeypatch
):
    generator = save_generator(tmp_path / "generator.safetensors")
    models, seen = tmp_path / "models", []

    def export(network, sigma_init, path, **options):
        seen.extend(models.iterdir())
        return export_once(network, sigma_init, path, **options)

    monkeypatch.setattr("distill.export.publish.export_onnx", export)
    publish(generator, None, "letters", "", "MIT", models)
    assert seen == []


@pytest.mark.slow
def test_a_version_of_another_signature_is_not_kept_beside_the_new_one(models, tmp_path):
    """Triton has one configuration for both, and would load neither."""
    unconditional = save_generator(tmp_path / "unconditional.safetensors", label_dim=0)
    folder = publish(unconditional, None, "letters", "", "MIT", models)
    assert {path.name for path in folder.iterdir()} == {"2", "config.pbtxt", "manifest.json"}


def wide_network():
    """Wide enough for Winograd's convolutions, with every kind of layer."""
    torch.manual_seed(0)
    config = EdmConfig(
        img_resolution=8, img_channels=3, label_dim=3, model_channels=128,
        channel_mult=(1, 1), num_blocks=1, attn_resolutions=(4,), dropout=0.1,
    )  # fmt: skip
    denoiser = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.02)
    return denoiser


@pytest.mark.parametrize("architecture", ["ddpmpp", "ncsnpp", "adm"])
@pytest.mark.parametrize("label_dim", [0, 3, 40])
def test_folding_the_noise_level_changes_no_image(architecture, label_dim):
    """With 40 classes the embedding is the table, with 3 each block's own part is."""
    torch.manual_seed(0)
    config = EdmConfig(
        architecture=architecture, img_resolution=8, img_channels=3, label_dim=label_dim,
        augment_dim=9, model_channels=8, channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,),
    )  # fmt: skip
    denoiser = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs = example_inputs(denoiser, 5)
    with torch.no_grad():
        expected = PixelGenerator(denoiser, 2.5)(*inputs).int()
        found = FoldedGenerator(denoiser, 2.5)(*inputs).int()
    assert expected.float().std() > 10
    assert (found - expected).abs().max() <= 1
    assert (found != expected).float().mean() < 0.01


@pytest.mark.parametrize("label_dim", [0, 3, 40])
def test_a_folded_network_computes_in_float16_wherever_its_tables_are(label_dim):
    denoiser = network(label_dim)
    inputs = example_inputs(denoiser, 2)
    with torch.no_grad():
        expected = FoldedGenerator(denoiser, 2.5)(*inputs).int()
        found = FoldedGenerator(denoiser, 2.5, torch.float16)(*inputs).int()
    assert expected.float().std() > 10
    assert (found - expected).abs().max() <= 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "width",
    ["narrow", *(pytest.param(name, marks=pytest.mark.long) for name in ("wide", "patched"))],
)
def test_the_form_for_processors_draws_the_same_images(tmp_path, export_once, width):
    denoiser = wide_network() if width == "wide" else network(3, 2 if width == "patched" else 1)
    export_once(denoiser, 2.5, tmp_path / "model.cpu.onnx", cpu=True)
    operators = [node.op_type for node in onnx.load(tmp_path / "model.cpu.onnx").graph.node]
    assert "GroupNormalization" not in operators, "ONNX Runtime has no kernel for it here"
    if width == "wide":
        assert operators.count("Conv") == 2, "but the first and the last, all are matrix products"
    session = onnxruntime.InferenceSession(tmp_path / "model.cpu.onnx")
    for batch in (1, 3):
        inputs = example_inputs(denoiser, batch)
        with torch.no_grad():
            expected = PixelGenerator(denoiser, 2.5)(*inputs).numpy()
        names = ["latents", "class_labels"]
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        (images,) = session.run(["images"], feed)
        assert images.std() > 10
        difference = np.abs(images.astype(int) - expected.astype(int))
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.01


@pytest.mark.slow
def test_lower_precisions_are_published_with_what_they_cost(tmp_path, monkeypatch):
    generator = save_generator(tmp_path / "generator.safetensors")
    report = tmp_path / "report.png"
    wanted = ["float16", "bfloat16"]
    # Random weights amplify what trained ones do not: only whether it is measured is looked at.
    loose = Tolerance(max_difference=255, max_differing_share=1, max_distance_change=1)
    monkeypatch.setattr(
        "distill.export.gate.TOLERANCES", dict.fromkeys([*wanted, "float32"], loose)
    )
    folder = publish(generator, None, "letters", "", "MIT", tmp_path / "models", wanted, report)
    graphs = load_bundle(folder).manifest.graphs
    assert {graph.precision for graph in graphs.values()} == {*wanted, "float32"}
    exact = graphs["model.onnx"].measured
    assert exact.difference <= 1
    assert exact.batch_difference == 0
    for name in ("model.float16.onnx", "model.cuda.onnx", "model.bfloat16.onnx"):
        assert graphs[name].measured.differing_share > exact.differing_share
    assert "nodes expanded" in graphs["model.cuda.onnx"].measured.engine
    types = {i.data_type for i in onnx.load(folder / "1" / "model.float16.onnx").graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    with Image.open(report) as image:
        assert image.size == (16 * 8 * 2, (1 + 2 * len(graphs)) * 8 * 2)


@pytest.mark.slow
def test_a_graph_that_draws_other_images_is_never_published(tmp_path, export_once, monkeypatch):
    generator = save_generator(tmp_path / "generator.safetensors")

    def export(network, sigma_init, path, **options):
        return export_once(network, sigma_init * 1.05, path, **options)

    monkeypatch.setattr("distill.export.publish.export_onnx", export)
    with pytest.raises(UserError, match=r"model.cpu.onnx is refused: .* from float32 torch"):
        publish(generator, None, "letters", "", "MIT", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_tensorrt_for_rtx_builds_every_precision_without_a_gpu(tmp_path, export_once, precision):
    pytest.importorskip("tensorrt_rtx")
    export_once(network(3), 2.5, tmp_path / "model.onnx", precision)
    build_plan(tmp_path / "model.onnx", tmp_path / "p", Builder.rtx, capability="SM89")
    assert (tmp_path / "p").stat().st_size > 10_000


@pytest.mark.slow
def test_what_tensorrt_cannot_build_is_one_line(tmp_path, export_once):
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match="tensorrt-rtx cannot read it") as refused:
        build_plan(tmp_path / "model.onnx", tmp_path / "p", Builder.rtx)
    assert "\n" not in str(refused.value)
    export_once(network(3), 2.5, tmp_path / "model.onnx", "float32")
    with pytest.raises(UserError, match="only tensorrt-rtx builds for a card that is not here"):
        build_plan(tmp_path / "model.onnx", tmp_path / "p", Builder.rtx, capability="SM90")
