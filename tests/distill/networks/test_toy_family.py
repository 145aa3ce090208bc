"""A family of networks that only this file knows goes the whole way, from images to a bundle."""

import json
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from distill.checkpoints import load_network, save_network
from distill.errors import UserError
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser, NetworkLayout, RawNetwork, registry
from distill.recipe import load_recipe
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from service.bundle import load_bundle
from tests.distill.command_line import sid_distill


class ToyConfig(NetworkLayout):
    """Some convolutions of `width` channels; neither dropout nor augmentation labels."""

    architecture: Literal["toy"] = "toy"
    augment_dim: Literal[0] = 0
    dropout: Literal[0] = 0
    width: int = 8

    def build(self):
        return Toy(self)


class Toy(RawNetwork):
    def __init__(self, config):
        super().__init__()
        self.map_noise = nn.Linear(1, config.width)
        self.map_label = nn.Linear(config.label_dim, config.width, bias=False)
        self.first = nn.Conv2d(config.img_channels, config.width, 3, padding=1)
        self.middle = nn.Conv2d(config.width, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, config.img_channels, 3, padding=1)

    def embed(self, c_noise, class_labels, augment_labels):  # noqa: ARG002
        emb = self.map_noise(c_noise[:, None])
        return emb if class_labels is None else emb + self.map_label(class_labels)

    def encode(self, x, emb):
        return [F.silu(self.first(x) + emb[:, :, None, None])]

    def decode(self, features, emb):
        return self.last(F.silu(self.middle(features[-1]) + emb[:, :, None, None]))

    def blocks(self):
        return (self.first, self.middle, self.last)


RECIPE = """
description = "toy"
licence = "MIT"
[network]
architecture = "toy"
img_resolution = 8
img_channels = 1
width = 6
[teacher]
total_images = 64
batch = 16
warmup = 16
lr = 1e-3
ema_halflife = 16
checkpoint_every = 64
[sid]
total_images = 32
batch = 8
sigma_init = 2.5
lr = 1e-4
ema_halflife = 16
checkpoint_every = 32
"""
CONFIG = ToyConfig(img_resolution=8, img_channels=1, label_dim=2)


@pytest.fixture
def toy(monkeypatch):
    """The one line in the registry."""
    monkeypatch.setitem(registry.FAMILIES, "toy", ToyConfig)


@pytest.fixture
def recipe(tmp_path):
    file = tmp_path / "toy.toml"
    file.write_text(RECIPE)
    return file


@pytest.mark.slow
@pytest.mark.usefixtures("toy", "memory_stays_as_it_is")
def test_it_is_trained_distilled_and_published_by_the_commands(tmp_path, recipe):
    for number, name in enumerate(("dark", "light")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            image = Image.new("L", (8, 8), 60 + 120 * number + 5 * i)
            image.save(tmp_path / "images" / name / f"{i}.png")
    options = ("--recipe", recipe, "--device", "cpu")
    sid_distill("teacher", *options, "--data", tmp_path / "images", "--out", tmp_path / "t")
    teacher = tmp_path / "t" / "network.safetensors"
    distil = ("run", *options, "--features", "none", "--teacher", teacher, "--out", tmp_path / "g")
    sid_distill(*distil, "--images", 16)
    sid_distill(*distil)  # goes on from the state at 16 images
    generator = tmp_path / "g" / "network.safetensors"
    for file, seen in ((teacher, 64), (generator, 32)):
        network, metadata = load_network(file)
        assert network.config == ToyConfig(img_resolution=8, img_channels=1, label_dim=2, width=6)
        assert isinstance(network.model, Toy)
        assert metadata["images_seen"] == seen
    options = ("--models", tmp_path / "models", "--precision", "float16")
    sid_distill("publish", generator, "--name", "toy", *options)
    manifest = load_bundle(tmp_path / "models" / "toy").manifest
    assert manifest.classes == ["dark", "light"]
    graphs = {"model.onnx", "model.cpu.onnx", "model.float16.onnx", "model.cuda.onnx"}
    assert manifest.graphs.keys() == graphs, "all passed the gate"


@pytest.mark.usefixtures("toy", "memory_stays_as_it_is")
def test_it_is_sharded_by_its_blocks():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        settings = {"total_images": 8, "batch": 8, "microbatch": 4, "lr": 1e-3}
        config = SidConfig(checkpoint_every=8, ema_halflife=40, **settings)
        torch.manual_seed(0)
        network = Denoiser(CONFIG)
        spread = Distillation(
            Sid(config), network, DistributedContext(torch.device("cpu"), shard=True)
        )
        learner = spread.generator.network
        assert all(isinstance(parameter, DTensor) for parameter in learner.parameters())
        gathered = [module for module in learner.modules() if hasattr(module, "unshard")]
        assert gathered == [learner, *learner.model.blocks()]
        torch.manual_seed(0)
        whole = Distillation(Sid(config), Denoiser(CONFIG), DistributedContext(torch.device("cpu")))
        spread.step(0)
        whole.step(0)
        weights = whole.generator.network.state_dict()
        for name, weight in spread.state()["generator"].items():
            torch.testing.assert_close(weight, weights[name])
    finally:
        dist.destroy_process_group()


def test_a_family_that_is_not_known_is_refused_with_those_that_are(tmp_path, recipe):
    said = "architecture 'toy' is not known: choose one of ddpmpp, ncsnpp, adm, edm2$"
    with pytest.raises(UserError, match=rf"toy.toml: network: {said}"):
        load_recipe(str(recipe))
    file = tmp_path / "toy.safetensors"
    save_network(file, Denoiser(CONFIG), {"role": "teacher", "classes": ["a", "b"]})
    with pytest.raises(UserError, match=rf"toy.safetensors is not a whole network .*: {said}"):
        load_network(file)


@pytest.mark.parametrize("record", [[], "ddpmpp", {"architecture": ["adm"]}, {"architecture": 3}])
def test_a_record_that_describes_no_network_is_a_value_error(record):
    with pytest.raises(ValueError, match=r"is described by named fields|is not known"):
        registry.read_config(json.loads(json.dumps(record)))
