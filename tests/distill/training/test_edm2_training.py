"""EDM2's networks learn: rows of weights stay of length one, and noise levels find their weight."""

import copy

import pytest
import torch
import torch.distributed as dist

from distill.data.datasets import Dataset
from distill.methods.dmd import Dmd, DmdConfig
from distill.methods.pairs import Pairs
from distill.methods.regression import RegressionTraining
from distill.methods.sid import Sid, SidConfig
from distill.methods.sida import Sida, SidaConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.networks.edm2 import Edm2Config
from distill.training.cuda_graph import EAGER_STEPS, StepGraphs
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.single_network import learning_rate
from distill.training_config import RegressionConfig, TeacherConfig
from tests.distill.training.aten_recorder import AtenRecorder

CPU = DistributedContext(torch.device("cpu"))
NETWORK = Edm2Config(
    img_resolution=8, img_channels=1, label_dim=3, model_channels=8, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(4,), channels_per_head=8, dropout=0.2, logvar_channels=16,
)  # fmt: skip
BATCH = 8
LOOP = {
    "total_images": 80, "batch": BATCH, "microbatch": 8, "lr": 1e-2, "ema_halflife": 20,
    "checkpoint_every": 80,
}  # fmt: skip


def network():
    """One whose gains are not 0, as they are of a fresh one: those hide what is behind them."""
    torch.manual_seed(0)
    made = Denoiser(NETWORK)
    for name, parameter in made.named_parameters():
        if name.endswith("gain"):
            torch.nn.init.constant_(parameter, 0.5)
    return made


def make_sid(context=CPU, start=None, **changes):
    return Distillation(Sid(SidConfig(**LOOP | changes)), network(), context, start)


def noise():
    pixels = torch.randint(
        256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )
    return Dataset("noise", pixels, torch.arange(30) % 3, ("a", "b", "c"))


def make_sida(context=CPU):
    config = SidaConfig(**LOOP | {"frozen_images": 0, "sid_images": 0})
    return Distillation(Sida(config), network(), context, dataset=noise())


def make_dmd(context=CPU):
    return Distillation(Dmd(DmdConfig(**LOOP)), network(), context)


def make_teacher(context=CPU, **changes):
    config = TeacherConfig(**LOOP | {"warmup": 8} | changes)
    training = TeacherTraining(NETWORK, config, noise(), context)
    training.learner.network.load_state_dict(network().state_dict())
    return training


def make_regression(context=CPU):
    pixels = torch.arange(30 * 64).remainder(255).to(torch.uint8).view(30, 1, 8, 8)
    config = RegressionConfig(**LOOP | {"pairs": 30, "warmup": 8})
    return RegressionTraining(network(), Pairs(NETWORK, 0, pixels), config, context)


MAKERS = [make_sid, make_sida, make_dmd, make_teacher, make_regression]


@pytest.mark.parametrize("make", MAKERS)
def test_every_weight_has_a_gradient_and_every_row_stays_of_length_one(make):
    """DDP waits for the gradient of each weight; so no learner may hold one that it does not use"""
    training = make()
    met = set()
    for learner in training.learners.values():
        for parameter in learner.parameters:
            parameter.register_post_accumulate_grad_hook(lambda p: met.add(id(p)))
    before = copy.deepcopy(training.state())
    for step in range(2):
        training.step(step * BATCH)
    for name, learner in training.learners.items():
        assert {id(p) for p in learner.parameters} <= met
        if make is make_sida and name == "fake score":
            continue  # whose weights the paper's code does not hold
        held = learner.network.model.unit_weights()
        assert len(held) > 20
        for weight in held:
            lengths = weight.flatten(1).square().mean(dim=1).sqrt()
            assert (lengths - 1).abs().max() < 1e-3
    for name, weights in training.state().items():
        if "optim" not in name:
            moved = [key for key, value in weights.items() if (value != before[name][key]).any()]
            assert len(moved) > 20, f"{name} has not learned"


def test_only_the_fake_score_keeps_the_uncertainty():
    training = make_sid()
    assert training.fake_score.network.config == NETWORK
    for generator in (training.generator.network, training.ema):
        assert generator.config.logvar_channels == 0
        assert not [name for name in generator.state_dict() if "logvar" in name]
    assert make_regression().ema.config.logvar_channels == 0


def test_a_generator_may_start_from_one_without_the_uncertainty():
    start = network()
    start.strip()
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.mul_(1.5)
    training = make_sid(start=start)
    for name, weight in training.ema.state_dict().items():
        torch.testing.assert_close(weight, start.state_dict()[name])


def test_holding_the_weights_changes_nothing_that_is_drawn():
    free = network()
    with torch.no_grad():
        for weight in free.model.unit_weights():
            weight.mul_(3)
    held = make_sid(start=_stripped(free)).generator.network.eval()
    x, sigma = torch.randn(2, 1, 8, 8), torch.tensor([1.0])
    with torch.no_grad():
        torch.testing.assert_close(held(x, sigma), free.eval()(x, sigma), rtol=0, atol=2e-3)


def _stripped(whole):
    bare = copy.deepcopy(whole)
    bare.strip()
    return bare


def test_captured_steps_are_the_eager_ones():
    eager, captured = make_sid(), make_sid()
    captured.graphs = StepGraphs(AtenRecorder())
    for step in range(EAGER_STEPS + 2):
        for training in (eager, captured):
            training.step(step * BATCH)
    states = [training.state() for training in (eager, captured)]
    for name, weights in states[0].items():
        if "optim" not in name:
            for key, value in weights.items():
                assert torch.equal(value, states[1][name][key]), f"{name} {key}"


def test_it_is_sharded_row_by_row():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        # Dropout draws other masks there, for they follow the memory's layout.
        spread = make_sid(DistributedContext(torch.device("cpu"), shard=True), dropout=0)
        whole = make_sid(dropout=0)
        spread.step(0)
        whole.step(0)
        for part in ("fake_score", "generator", "ema"):
            for name, weight in spread.state()[part].items():
                difference = (weight - whole.state()[part][name]).abs()
                # Adam makes as much of a gradient that is nearly 0 as of any other.
                assert difference.quantile(0.9) < 1e-4, f"{part} {name}"
    finally:
        dist.destroy_process_group()


def test_a_noise_level_finds_its_uncertainty():
    """u goes towards the logarithm of the loss: where that is high u rises."""
    training = make_teacher(total_images=8000, lr=3e-3)
    sigma = torch.tensor([0.05, 2.0])

    def uncertainty():
        return training.learner.network(torch.zeros(2, 1, 8, 8), sigma, uncertainty=True)[1]

    before = uncertainty().flatten()
    for step in range(12):
        training.step(step * BATCH)
    after = uncertainty().flatten()
    assert (after - before).abs().max() > 0.01


def test_the_rate_of_edm2_falls_with_the_root_of_the_images():
    config = TeacherConfig(
        total_images=10_000, batch=10, lr=0.01, warmup=100, decay_after=1000, ema_halflife=1,
        checkpoint_every=10,
    )  # fmt: skip
    assert learning_rate(config, 40) == pytest.approx(0.01 * 0.5)
    assert learning_rate(config, 1000) == pytest.approx(0.01)
    assert learning_rate(config, 4000) == pytest.approx(0.005)
    assert learning_rate(config, 9_000) == pytest.approx(0.01 / 3)
