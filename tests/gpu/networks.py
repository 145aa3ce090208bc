"""The networks that are measured, and the one place where their trainings are made."""

from typing import Any

import torch

from distill.data.datasets import Dataset
from distill.methods.registry import method_section
from distill.methods.sid import Sid, SidConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser, NetworkLayout
from distill.networks.edm import EdmConfig
from distill.recipe import load_recipe
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.form_choice import CompileChoice
from distill.training_config import TeacherConfig, TrainingPrecision

RECIPES = {"cifar": "cifar10-uncond", "fashion": "fashion"}
# 3.1 M parameters and 3.1 GFLOP a forward pass: of the size of the network that was measured
# before, of which no more is known.
_SIZE_64 = EdmConfig(
    img_resolution=64, img_channels=3, label_dim=10, model_channels=32,
    channel_mult=(1, 2, 3, 3), num_blocks=1, attn_resolutions=(16,), dropout=0.0,
)  # fmt: skip
_TOY = {"img_resolution": 8, "model_channels": 8, "channel_mult": (1, 2), "num_blocks": 1}


def layout(name: str, *, toy: bool) -> NetworkLayout:
    """The shape of a network; at toy size a tiny one with the same inputs."""
    whole = _SIZE_64 if name == "64x64" else load_recipe(RECIPES[name]).network
    if not toy:
        return whole
    return EdmConfig.model_validate(whole.model_dump() | _TOY | {"attn_resolutions": ()})


def network(name: str, *, toy: bool) -> Denoiser:
    """A network with weights of a trained one's size: fresh ones end near 0."""
    torch.manual_seed(0)
    denoiser = Denoiser(layout(name, toy=toy))
    for weight in denoiser.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return denoiser


def sid_config(name: str, batch: int, precision: TrainingPrecision, microbatch: int) -> SidConfig:
    """How SiD trains a network: as its recipe says, where it has one."""
    given: dict[str, Any] = {"total_images": 10**9, "checkpoint_every": 10**9}
    if name in RECIPES:
        given = method_section(load_recipe(RECIPES[name]), RECIPES[name]).model_dump()
    given |= {"batch": batch, "microbatch": microbatch, "precision": precision}
    return SidConfig.model_validate(given)


def make_sid(
    denoiser: Denoiser, config: SidConfig, device: torch.device, compiling: CompileChoice = "off"
) -> Distillation:
    """The training of a user, its steps replayed as CUDA graphs on a card.

    Args:
        denoiser: the teacher.
        config: of the run.
        device: where.
        compiling: as --compile takes it; by default the faster one of the eager forms.
    """
    context = DistributedContext(device)
    return Distillation(Sid(config), denoiser, context, compile_choice=compiling)


def make_teacher(
    shape: NetworkLayout, config: TeacherConfig, dataset: Dataset, device: torch.device
) -> TeacherTraining:
    """The same of a teacher."""
    return TeacherTraining(shape, config, dataset, DistributedContext(device), compile_choice="off")


def random_images(shape: NetworkLayout, count: int) -> Dataset:
    """A data set of noise, for the speed alone."""
    size = (count, shape.img_channels, shape.img_resolution, shape.img_resolution)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, size, dtype=torch.uint8, generator=generator)
    classes = tuple(f"class {number}" for number in range(shape.label_dim))
    return Dataset("noise", images, torch.arange(count) % max(1, shape.label_dim), classes)
