"""Several steps in one graph: they are the calls by hand, and the bundle is served as any other."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from distill.checkpoints import save_network
from distill.errors import UserError
from distill.export.cuda_twin import expand_nodes
from distill.export.gate import draw_reference_images, validate
from distill.export.generator import load_generator
from distill.export.one_step import FoldedGenerator, PixelGenerator
from distill.export.onnx import example_inputs
from distill.export.publish import publish
from distill.schedules import step_sigmas
from service.bundle import latents, load_bundle
from service.client import Client
from tests.distill.export.test_cuda import awake
from tests.service.test_process import serving

NAMES = ("latents", "class_labels")


def small(architecture="ddpmpp", label_dim=3):
    """Its graphs are soon exported, of several steps too."""
    layout = {"channel_mult": (1,), "attn_resolutions": (8,), "label_dim": label_dim}
    return awake(architecture, **layout, model_channels=64 if architecture == "adm" else 16)


def session(model):
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("architecture", ["ddpmpp", "adm"])
@pytest.mark.parametrize("label_dim", [0, 3, 40])
@pytest.mark.parametrize("steps", [2, 4])
@torch.no_grad()
def test_folding_the_levels_of_all_steps_changes_no_image(architecture, label_dim, steps):
    """With 40 classes the embedding is the table, with 3 each block's own part is."""
    network = small(architecture, label_dim)
    inputs = example_inputs(network, 5)
    expected = PixelGenerator(network, 2.5, steps)(*inputs).int()
    assert expected.float().std() > 10
    assert (expected - PixelGenerator(network, 2.5)(*inputs).int()).abs().max() > 10
    for dtype, levels in ((torch.float32, 1), (torch.float16, 4)):
        found = FoldedGenerator(network, 2.5, dtype, steps)(*inputs).int()
        assert (found - expected).abs().max() <= levels


@pytest.fixture(scope="module")
def folder(export_once, tmp_path_factory):
    """Graphs of two steps in every form, and of one step at each of the two levels."""
    folder = tmp_path_factory.mktemp("few-step")
    forms = {"model.onnx": {}, "model.cpu.onnx": {"cpu": True}}
    forms["model.cuda.onnx"] = {"precision": "float16", "cuda": True}
    for name, options in forms.items():
        export_once(small(), 2.5, folder / name, **options, steps=2)
    for sigma in step_sigmas(2.5, 2):
        export_once(small(), sigma, folder / f"{sigma:g}.onnx")
    return folder


@pytest.mark.slow
def test_two_steps_in_one_graph_are_two_calls_by_hand_of_graphs_of_one(folder):
    z, labels = (rows.numpy() for rows in example_inputs(small(), 5))
    x = None
    for sigma in step_sigmas(2.5, 2):
        noisy = z if x is None else x / sigma + z  # a graph multiplies what it is given by sigma
        feed = dict(zip(NAMES, (noisy.astype(np.float32), labels), strict=True))
        (pixels,) = session(folder / f"{sigma:g}.onnx").run(None, feed)
        x = (pixels.transpose(0, 3, 1, 2) - 127.5) / 127.5
    feed = dict(zip(NAMES, (z, labels), strict=True))
    (images,) = session(folder / "model.onnx").run(None, feed)
    assert images.std() > 10
    difference = np.abs(images.astype(int) - pixels.astype(int))
    assert difference.max() <= 3, "by hand the image between is rounded to levels"
    assert difference.mean() < 0.5


@pytest.mark.slow
def test_every_form_draws_what_torch_draws_and_holds_each_weight_once(folder):
    weights = sum(parameter.numel() for parameter in small().parameters())
    for name in ("model.onnx", "model.cpu.onnx", "model.cuda.onnx"):
        model = onnx.load(folder / name)
        held = sum(np.prod(one.dims, dtype=int) for one in model.graph.initializer)
        assert held < 1.1 * weights, name
        twin = expand_nodes(model) if "cuda" in name else model
        for batch in (1, 5):
            inputs = example_inputs(small(), batch)
            with torch.no_grad():
                expected = PixelGenerator(small(), 2.5, 2)(*inputs).numpy()
            feed = {key: rows.numpy() for key, rows in zip(NAMES, inputs, strict=True)}
            (images,) = session(twin.SerializeToString()).run(None, feed)
            difference = np.abs(images.astype(int) - expected.astype(int)).max()
            assert difference <= (4 if "cuda" in name else 1), name


@pytest.mark.slow
def test_the_gate_refuses_a_graph_of_fewer_steps_than_the_generator(folder, tmp_path):
    expected = draw_reference_images(PixelGenerator(small(), 2.5, 2), None)
    graph, _ = validate(folder / "model.onnx", expected)
    assert graph.measured.difference <= 1
    (tmp_path / "model.onnx").write_bytes((folder / "2.5.onnx").read_bytes())
    with pytest.raises(UserError, match=r"model\.onnx is refused"):
        validate(tmp_path / "model.onnx", expected)


def save_generator(path, **metadata):
    network = small()
    classes = {"role": "generator", "classes": ["a", "b", "c"], "sigma_init": 2.5}
    save_network(path, network, classes | metadata)
    return network


def test_fresh_noise_is_not_for_a_graph(tmp_path):
    file = tmp_path / "generator.safetensors"
    save_generator(file, steps=2, renoise="fresh")
    with pytest.raises(UserError, match=r"fresh noise between its steps.* --renoise same"):
        load_generator(file)


@pytest.mark.slow
def test_a_generator_of_two_steps_is_published_and_served(tmp_path):
    file, models = tmp_path / "generator.safetensors", tmp_path / "models"
    network = save_generator(file, steps=2, renoise="same")
    bundle = publish(file, None, "twice", "", "MIT", models)
    assert json.loads((bundle / "manifest.json").read_text())["steps"] == 2
    assert load_bundle(bundle).manifest.steps == 2
    z = torch.from_numpy(latents([7], network.config.latent_shape))
    with torch.no_grad():
        expected = PixelGenerator(network, 2.5, 2)(z, torch.tensor([1]))[0].numpy()
    with serving(models, log=tmp_path / "log") as (_, url), Client(url) as client:
        (card,) = client.models()
        assert (card.name, card.steps) == ("twice", 2)
        image = client.generate("b", 7).pixels()
    assert np.abs(image.astype(int) - expected.astype(int)).max() <= 1
