"""What a sharded run holds in memory: one whole network at a time, no whole gradients."""

import gc
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import distill.training.distributed
from distill.data.datasets import Dataset
from distill.methods.sid import Sid, SidConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import GENERATOR_PHASE, Distillation
from distill.training.distributed import DistributedContext
from distill.training_config import TeacherConfig

NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=(1, 1),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip
LOOP = {"total_images": 8, "batch": 8, "microbatch": 2, "lr": 1e-3, "ema_halflife": 40}


@pytest.fixture
def context():
    """One process, sharded as if there were more."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DistributedContext(torch.device("cpu"), shard=True)
    dist.destroy_process_group()


def make_sid(context, microbatch=2):
    torch.manual_seed(0)
    config = SidConfig(checkpoint_every=8, **LOOP | {"microbatch": microbatch})
    return Distillation(Sid(config), Denoiser(NETWORK), context)


def make_teacher(context):
    pixels = torch.arange(30 * 64).remainder(255).to(torch.uint8).view(30, 1, 8, 8)
    dataset = Dataset("ramp", pixels, torch.arange(30) % 2, ("a", "b"))
    return TeacherTraining(NETWORK, TeacherConfig(checkpoint_every=8, **LOOP), dataset, context)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_sid, make_teacher])
def test_networks_are_built_and_sharded_one_after_the_other(make, context, monkeypatch):
    def whole_networks():
        networks = [one for one in gc.get_objects() if type(one) is Denoiser]
        return sum(not isinstance(next(one.parameters()), DTensor) for one in networks)

    gc.collect()
    before, counted, sites = whole_networks(), [], []
    shard = distill.training.distributed.shard

    def counting(network, device):
        gc.collect()
        counted.append(whole_networks() - before)
        sites.append({parameter.device.type for parameter in network.parameters()})
        return shard(network, device)

    monkeypatch.setattr(distill.training.distributed, "shard", counting)
    training = make(context)
    assert len(counted) == 1 + len(training.learners) + (make is make_sid)
    assert max(counted) <= 2, "the one that is copied, and its copy"
    assert all(site == {"cpu"} for site in sites)


def test_gradients_are_spread_after_each_micro_batch(context):
    training = make_sid(context)
    learner = training.generator
    spread = []

    def prepare(number):
        if number:
            parameters = list(learner.network.parameters())
            spread.append(all(isinstance(p.grad, DTensor) for p in parameters))

    prepares = [partial(prepare, number) for number in range(4)]
    training.phases[GENERATOR_PHASE].run(None, prepares, rate=1e-3)
    assert spread == [True] * 3


def test_a_sharded_step_that_is_not_finite_is_skipped(context):
    training = make_sid(context)
    training.step(0)
    before = [p.to_local().clone() for p in training.generator.network.parameters()]
    training.generator.network.register_forward_hook(lambda _m, _i, output: output * torch.nan)
    training.step(8)
    after = [p.to_local() for p in training.generator.network.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert training.generator.skipped.item() == 1
