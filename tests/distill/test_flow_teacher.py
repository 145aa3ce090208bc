"""A flow teacher goes every teacher's way: trained, drawn, distilled, its student served."""

import asyncio

import numpy as np
import pytest
import torch
from PIL import Image

from distill.checkpoints import load_network, save_network
from distill.data.datasets import Dataset
from distill.data.images import from_pixels
from distill.errors import UserError
from distill.export.one_step import FoldedGenerator, PixelGenerator
from distill.methods.sid import Sid, SidConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.recipe import load_recipe, nearest_recipe
from distill.training.distillation import FAKE_SCORE_PHASE, Distillation
from distill.training.distributed import DistributedContext
from distill.training_config import TeacherConfig
from service.bundle import latents, load_bundle
from service.engines.onnx import OnnxEngine
from tests.bundles import compute
from tests.distill.command_line import sid_distill
from tests.distill.tiny_recipe import NETWORK, tiny_recipe

CPU = DistributedContext(torch.device("cpu"))
FLOW = EdmConfig(preconditioning="flow", label_dim=2, **NETWORK)
LEVELS = {"noise_mean": 0.0, "noise_std": 1.0}
LENGTH = {"total_images": 64, "batch": 16, "lr": 1e-3, "ema_halflife": 16, "checkpoint_every": 64}


@pytest.fixture(autouse=True)
def freed_memory_goes_back(monkeypatch):
    # It would rule all of this process, and other tests look at memory.
    for command in ("run", "teacher", "regress"):
        monkeypatch.setattr(f"distill.commands.{command}.keep_freed_memory", lambda: None)


def awake(config, seed=0):
    """A network whose images depend on noise and class, though it never learned."""
    torch.manual_seed(seed)
    network = Denoiser(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def watched(network):
    """What a denoiser is given from now on, and what it gives."""
    calls = []
    network.register_forward_hook(lambda _m, given, out: calls.append((*given, out.detach())))
    return calls


def velocity_error(images, call):
    """|v - (eps - x0)|^2 of a denoiser's call on noised images, a mean."""
    noisy, sigma, *_, denoised = call
    t = sigma / (1 + sigma)
    velocity = (noisy / (1 + sigma) - denoised) / t
    noise = (noisy - images) / sigma
    return ((velocity - (noise - images)) ** 2).mean().item()


def test_a_teacher_learns_the_velocity():
    pixels = torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8)
    dataset = Dataset("shades", pixels, torch.arange(8) % 2, ("a", "b"))
    config = TeacherConfig(**LENGTH | LEVELS | {"batch": 8})
    training = TeacherTraining(FLOW, config, dataset, CPU)
    calls = watched(training.learner.network)
    logged = training.step(0)
    images = from_pixels(training.examples.batch[0])
    expected = velocity_error(images, calls[0])
    assert logged["loss/teacher"].item() == pytest.approx(expected, rel=1e-4)


def test_the_fake_score_of_a_flow_teacher_learns_the_velocity_too():
    config = SidConfig(**LENGTH | LEVELS | {"batch": 8, "sigma_init": 2.5})
    training = Distillation(Sid(config), awake(FLOW), CPU)
    drawn, denoised = watched(training.generator.network), watched(training.fake_score.network)
    logged = training.step(0)
    expected = velocity_error(drawn[FAKE_SCORE_PHASE][-1], denoised[FAKE_SCORE_PHASE])
    assert logged["loss/fake_score"].item() == pytest.approx(expected, rel=1e-4)


def test_what_is_folded_for_the_export_draws_the_same():
    network, z = awake(FLOW), torch.randn(4, 1, 8, 8)
    labels = torch.tensor([0, 1, 0, 1])
    with torch.no_grad():
        expected = PixelGenerator(network, 2.5)(z, labels)
        images = FoldedGenerator(network, 2.5)(z, labels)
    assert expected.float().std() > 10, "a flat image would prove nothing"
    assert (images.int() - expected.int()).abs().max() <= 1


def served(bundle, seeds, labels):
    """The pixels that the gateway's own engine computes."""

    async def run():
        engine = OnnxEngine(bundle, threads=1, concurrency=1)
        await engine.open()
        try:
            z = latents(seeds, bundle.manifest.latent_shape)
            return await compute(engine, z, labels)
        finally:
            await engine.close()

    return asyncio.run(run())


@pytest.mark.slow
def test_from_images_to_a_served_generator(tmp_path):
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("L", (8, 8), 60 + 120 * number + 5 * i)
            image.save(tmp_path / "images" / name / f"{i}.png")
    recipe = tmp_path / "flow.toml"
    sections = dict.fromkeys(("teacher", "sid"), LENGTH | LEVELS)
    pairs = LENGTH | {"pairs": 64, "steps": 2}
    text = tiny_recipe({"preconditioning": "flow"}, "MIT", regression=pairs, **sections)
    recipe.write_text(text)
    options = ("--recipe", recipe, "--device", "cpu")
    sid_distill("teacher", *options, "--data", tmp_path / "images", "--out", tmp_path / "t")
    teacher = tmp_path / "t" / "network.safetensors"
    start = tmp_path / "r" / "network.safetensors"
    sid_distill("regress", *options, "--teacher", teacher, "--out", tmp_path / "r")
    distil = ("run", *options, "--features", "none", "--teacher", teacher, "--generator", start)
    sid_distill(*distil, "--out", tmp_path / "g", "--images", 32)
    sid_distill(*distil, "--out", tmp_path / "g")  # goes on from the state at 32 images
    generator = tmp_path / "g" / "network.safetensors"
    for file in (teacher, start, generator):
        assert load_network(file)[0].config == FLOW
    sid_distill("analyze", tmp_path / "g", "--pictures", 4)
    sid_distill("publish", generator, "--name", "shades", "--models", tmp_path / "models")
    bundle = load_bundle(tmp_path / "models" / "shades")
    labels = np.arange(8) % 2
    images = served(bundle, range(8), labels)
    network, metadata = load_network(generator)
    z = torch.from_numpy(latents(range(8), network.config.latent_shape))
    with torch.no_grad():
        expected = PixelGenerator(network, metadata["sigma_init"])(z, torch.from_numpy(labels))
    assert np.abs(images.astype(int) - expected.numpy().astype(int)).max() <= 1
    assert images.std() > 10


def test_a_generator_of_the_other_kind_is_no_start(tmp_path):
    edm = FLOW.model_copy(update={"preconditioning": "edm"})
    origin = {"classes": ["a", "b"]}
    generator = origin | {"role": "generator", "sigma_init": 2.5}
    save_network(tmp_path / "t.safetensors", awake(FLOW), origin | {"role": "teacher"})
    save_network(tmp_path / "g.safetensors", awake(edm), generator)
    said = r"the preconditioning of .*g\.safetensors is edm, the teacher's is flow: --generator"
    files = ("--teacher", tmp_path / "t.safetensors", "--generator", tmp_path / "g.safetensors")
    with pytest.raises(UserError, match=said):
        sid_distill("run", *files, "--features", "none", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_preconditioning_that_nobody_knows_is_refused(tmp_path):
    recipe = tmp_path / "vp.toml"
    recipe.write_text(tiny_recipe({"preconditioning": "vp"}, sid={"total_images": 8}))
    with pytest.raises(UserError, match=r"vp\.toml: network\.preconditioning: .*'edm' or 'flow'"):
        load_recipe(str(recipe))


@pytest.mark.parametrize(("kind", "nearest"), [("edm", "fashion"), ("flow", "fashion-flow")])
def test_the_recipe_that_is_proposed_is_for_the_networks_kind(kind, nearest):
    network = load_recipe("fashion").network.model_copy(update={"preconditioning": kind})
    assert nearest_recipe(network, "fashion.pkl", latents=False)[0] == nearest
