"""Export and publish: the graph draws what torch draws, and the gateway serves the bundle."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.checkpoints import save_network
from distill.errors import UserError
from distill.evaluation.measurement import Measurement, save_measurement
from distill.export.onnx import PixelGenerator, example_inputs, export_onnx
from distill.export.publish import publish
from distill.networks import Denoiser, NetworkConfig
from service.bundle import latents, load_bundle, sha256_file


def network(label_dim):
    torch.manual_seed(0)
    config = NetworkConfig(
        img_resolution=8, img_channels=3, label_dim=label_dim, model_channels=8,
        channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.1,
    )  # fmt: skip
    denoiser = Denoiser(config).eval()
    with torch.no_grad():  # an untrained network's output layer is near zero: wake it up
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return denoiser


@pytest.mark.parametrize("label_dim", [0, 3])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_graph_draws_what_torch_draws(tmp_path, label_dim, batch):
    denoiser = network(label_dim)
    export_onnx(denoiser, 2.5, tmp_path / "model.onnx")
    inputs = example_inputs(denoiser, batch)
    with torch.no_grad():
        expected = PixelGenerator(denoiser, 2.5)(*inputs).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    names = ["latents", "class_labels"]
    feed = {name: value.numpy() for name, value in zip(names, inputs, strict=False)}
    (images,) = session.run(["images"], feed)
    assert images.shape == (batch, 8, 8, 3)
    assert images.dtype == np.uint8
    assert images.std() > 10, "a flat picture would prove nothing"
    difference = np.abs(images.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_the_graph_is_reproducible_and_tells_nothing_of_this_machine(tmp_path):
    for name in ("a.onnx", "b.onnx"):
        export_onnx(network(3), 2.5, tmp_path / name)
    content = (tmp_path / "a.onnx").read_bytes()
    assert content == (tmp_path / "b.onnx").read_bytes()
    for trace in (b"site-packages", b"/work/", b"distill/", b".py"):
        assert trace not in content
    operators = {node.op_type for node in onnx.load(tmp_path / "a.onnx").graph.node}
    assert "GroupNormalization" in operators
    assert not operators & {"RandomNormal", "Dropout", "Sin", "Cos"}


def save_generator(path, role="generator", label_dim=3):
    facts = {"role": role, "classes": ["a", "b", "c"][:label_dim], "images_seen": 7, "lr": 1e-4}
    save_network(path, network(label_dim), facts | {"sigma_init": 2.5, "data": "none"})
    return path


def measure(file, role, distance, evaluations):
    measurement = Measurement(
        role=role, network_sha256=sha256_file(file), features="fashion-cnn", features_sha256="f",
        reference="60000 training images", images=1000, first_seed=0, evaluations=evaluations,
        distance=distance, accuracy=0.9,
    )  # fmt: skip
    save_measurement(file, measurement)


def test_a_published_bundle_verifies_and_states_its_quality(tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    teacher = save_generator(tmp_path / "teacher.safetensors", role="teacher")
    measure(generator, "generator", 1.5, 1)
    measure(teacher, "teacher", 2.5, 35)
    models = tmp_path / "models"
    for version in (1, 2, 3):  # publishing again makes the next version, and keeps the last
        folder = publish(generator, teacher, "letters", "Letters.", "MIT", models)
        manifest = load_bundle(folder).manifest
        assert manifest.version == version
        (folder / "configs").mkdir(exist_ok=True)  # an operator's (docs/operations.md)
    kept = {"2", "3", "config.pbtxt", "configs", "manifest.json"}
    assert {path.name for path in folder.iterdir()} == kept
    assert manifest.classes == ["a", "b", "c"]
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
    with pytest.raises(UserError, match=r"quality.json is missing: run 'sid-distill evaluate"):
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


def test_a_publish_that_was_killed_half_way_is_undone_by_the_next(tmp_path):
    generator = save_generator(tmp_path / "generator.safetensors")
    models = tmp_path / "models"
    folder = publish(generator, None, "letters", "", "MIT", models)
    folder.rename(tmp_path / ".models-letters.retired")  # as after the first of the two renames
    publish(generator, None, "letters", "", "MIT", models)
    assert load_bundle(folder).manifest.version == 2
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["models"]


def test_what_is_built_never_lies_where_triton_would_take_it_for_a_model(tmp_path, monkeypatch):
    generator = save_generator(tmp_path / "generator.safetensors")
    models, seen = tmp_path / "models", []

    def export(network, sigma_init, path):
        seen.extend(models.iterdir())
        export_onnx(network, sigma_init, path)

    monkeypatch.setattr("distill.export.publish.export_onnx", export)
    publish(generator, None, "letters", "", "MIT", models)
    assert seen == []


def test_a_version_of_another_signature_is_not_kept_beside_the_new_one(tmp_path):
    """Triton has one configuration for both, and would load neither."""
    conditional = save_generator(tmp_path / "conditional.safetensors")
    unconditional = save_generator(tmp_path / "unconditional.safetensors", label_dim=0)
    for generator in (conditional, unconditional):
        folder = publish(generator, None, "letters", "", "MIT", tmp_path / "models")
    assert {path.name for path in folder.iterdir()} == {"2", "config.pbtxt", "manifest.json"}
