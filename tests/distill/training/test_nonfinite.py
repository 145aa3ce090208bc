"""A sample that is not finite contributes nothing; the others' gradients are as without it."""

import copy
import math

import pytest
import torch

from distill.data.datasets import Dataset
from distill.data.images import from_pixels
from distill.methods.losses import fake_score_loss, generator_loss
from distill.methods.sid import Sid, SidConfig
from distill.methods.teacher import TeacherTraining
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training_config import TeacherConfig

CPU = DistributedContext(torch.device("cpu"))
NETWORK = EdmConfig(
    img_resolution=8, img_channels=3, label_dim=3, model_channels=16, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(4,), dropout=0.0,
)  # fmt: skip
BATCH, BAD = 6, 2
OTHERS = [row for row in range(BATCH) if row != BAD]
SID = SidConfig(
    total_images=600, batch=BATCH, lr=1e-3, alpha=1.2, checkpoint_every=600, ema_halflife=50
)
TEACHER = TeacherConfig(
    total_images=600, batch=BATCH, lr=1e-3, ema_halflife=50, checkpoint_every=600, warmup=0
)


def network():
    torch.manual_seed(0)
    made = Denoiser(NETWORK)
    for weight in made.parameters():
        if weight.dim() > 1:  # the last layers begin near 0 and would hide the others
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return made


def make_sid():
    return Distillation(Sid(SID), network(), CPU)


def make_teacher():
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (30, 3, 8, 8), generator=generator, dtype=torch.uint8)
    dataset = Dataset("noise", pixels, torch.arange(30) % 3, ("a", "b", "c"))
    training = TeacherTraining(NETWORK, TEACHER, dataset, CPU)
    training.learner.network.load_state_dict(network().state_dict())
    return training


def gradients(module):
    return torch.cat([weight.grad.flatten() for weight in module.parameters()])


def spoil(module, value, training=None, before=False):
    """Have a network give, or be given, `value` in one sample; in that mode of it, if named."""

    def bad_row(tensor):
        bad = torch.arange(len(tensor)).view(-1, 1, 1, 1) == BAD
        return torch.where(bad, torch.tensor(value), tensor)

    def after(self, _inputs, output):
        return bad_row(output) if training in (None, self.training) else None

    def ahead(self, inputs):
        return (bad_row(inputs[0]), *inputs[1:]) if training in (None, self.training) else None

    if before:
        module.register_forward_pre_hook(ahead)
    else:
        module.register_forward_hook(after)


class Calls:
    """What a network was given and gave, call by call: (inputs, output)."""

    def __init__(self, module):
        self.seen = []
        module.register_forward_hook(
            lambda _m, inputs, output: self.seen.append((inputs, output.detach().clone()))
        )


def rows(inputs):
    """The inputs of a call without the bad sample."""
    x, sigma, labels = inputs[:3]
    return x[OTHERS], sigma if len(sigma) == 1 else sigma[OTHERS], labels[OTHERS]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.fixture(scope="module")
def expected():
    """The gradients of psi and theta without the sample: written down from a step of all."""
    training = make_sid()
    theta, psi = copy.deepcopy(training.generator.network), copy.deepcopy(training.teacher)
    theta_calls, psi_calls = Calls(training.generator.network), Calls(training.fake_score.network)
    phi_calls = Calls(training.teacher)
    training.step(0)

    images = theta_calls.seen[0][1][OTHERS]
    noisy, sigma, labels = rows(psi_calls.seen[0][0])
    psi.requires_grad_(True)
    (fake_score_loss(images, psi(noisy, sigma, labels), sigma, "edm").sum() / BATCH).backward()

    drawn = theta_calls.seen[1]
    noisy, sigma, labels = rows(phi_calls.seen[0][0])
    noise = noisy.detach() - drawn[1][OTHERS]
    theta.requires_grad_(True)
    images = theta(*rows(drawn[0]))
    a = training.teacher(images + noise, sigma, labels)
    b = training.fake_score.network(images + noise, sigma, labels)
    (generator_loss(images, a, b, SID.alpha).sum() * 100 / BATCH).backward()
    return gradients(psi), gradients(theta)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("drawn", math.nan), ("drawn", math.inf), ("drawn", -math.inf),
        ("denoised", math.nan), ("denoised", math.inf), ("denoised", 1e30),
    ],
)  # fmt: skip
def test_psis_gradients_are_those_of_the_other_samples(place, value, expected):
    """An image that is NaN must not enter psi; what psi makes of one must not come back.

    (1e30 is finite; the loss of it is not.)
    """
    training = make_sid()
    if place == "drawn":
        spoil(training.generator.network, value, training=False)
    else:
        spoil(training.fake_score.network, value, training=True)
    training.step(0)
    close(gradients(training.fake_score.network), expected[0])
    assert training.fake_score.left_out.item() == pytest.approx(1 / BATCH)
    assert training.fake_score.skipped.item() == 0


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
@pytest.mark.parametrize("place", ["theta", "phi", "psi", "into phi", "into psi"])
def test_thetas_gradients_are_those_of_the_other_samples(place, value, expected):
    training = make_sid()
    networks = {
        "theta": (training.generator.network, True),
        "phi": (training.teacher, None),
        "psi": (training.fake_score.network, False),
    }
    module, mode = networks[place.removeprefix("into ")]
    spoil(module, value, mode, before=place.startswith("into"))
    training.step(0)
    close(gradients(training.generator.network), expected[1])
    assert training.generator.left_out.item() == pytest.approx(1 / BATCH)
    assert training.generator.skipped.item() == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teachers_gradients_are_those_of_the_other_samples(value):
    training = make_teacher()
    plain, calls = network(), Calls(training.learner.network)
    training.step(0)
    noisy, sigma, labels = rows(calls.seen[0][0])
    clean = from_pixels(training.examples.batch[0])[OTHERS]
    (fake_score_loss(clean, plain(noisy, sigma, labels), sigma, "edm").sum() / BATCH).backward()

    spoiled = make_teacher()
    spoil(spoiled.learner.network, value)
    logged = spoiled.step(0)
    close(gradients(spoiled.learner.network), gradients(plain))
    assert spoiled.learner.left_out.item() == pytest.approx(1 / BATCH)
    assert logged["loss/teacher"].isfinite()


def everything(learner):
    """A copy of its weights and Adam's moments and number of steps."""
    state = learner.optimizer.state_dict()["state"]
    moments = [value for entry in state.values() for value in entry.values()]
    return [t.detach().clone() for t in (*learner.network.parameters(), *moments)]


@pytest.mark.parametrize("how", ["no sample is left", "no gradient is finite"])
@pytest.mark.parametrize("make", [make_sid, make_teacher])
def test_a_step_that_is_not_finite_leaves_weights_and_moments_alone(make, how):
    training = make()
    training.step(0)
    learner = list(training.learners.values())[-1]
    before = everything(learner)
    assert learner.skipped.item() == 0
    if how == "no sample is left":
        hook = learner.network.register_forward_hook(lambda _m, _i, output: output * math.nan)
    else:
        weight = next(learner.network.parameters())
        hook = weight.register_hook(lambda gradient: gradient * math.inf)
    logged = training.step(BATCH)
    hook.remove()
    for a, b in zip(everything(learner), before, strict=True):
        assert torch.equal(a, b)
    assert learner.skipped.item() == learner.consecutive_skips.item() == 1
    name = list(training.learners)[-1]
    assert how == "no sample is left" or not logged[f"gradient/{name}"].isfinite()

    untouched = make()
    untouched.step(0)
    for one in (training, untouched):
        one.step(2 * BATCH)
    if make is make_teacher:  # (a psi was stepped between, in SiD)
        for a, b in zip(everything(learner), everything(untouched.learner), strict=True):
            assert torch.equal(a, b)
    assert learner.consecutive_skips.item() == 0
    assert learner.skipped.item() == 1
