"""SiDA's training is the algorithm as it reads, with its schedule and its images."""

import copy
from typing import get_args

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F

from distill.data.augment import AUGMENT_DIM, augment
from distill.data.datasets import Dataset
from distill.errors import UserError
from distill.methods.adversarial import MeanOver
from distill.methods.sid import Sid, SidConfig
from distill.methods.sida import Sida, SidaConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.schedules import generator_sigmas
from distill.training.distillation import (
    FAKE_SCORE_PHASE,
    GENERATOR_PHASE,
    Distillation,
    _cumulated_frequencies,
)
from distill.training.distributed import DistributedContext
from distill.training.microbatches import seed_rng

CPU = DistributedContext(torch.device("cpu"))
SEED, BATCH, LR = 5, 8, 1e-3
NETWORK = EdmConfig(
    img_resolution=8, img_channels=1, label_dim=3, augment_dim=AUGMENT_DIM, model_channels=8,
    channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0,
)  # fmt: skip
# Adam's eps is 1, so that a rounding error of a gradient stays one in the weight.
LOOP = {
    "total_images": 1000, "batch": BATCH, "microbatch": 4, "lr": LR, "adam_eps": 1.0,
    "checkpoint_every": 1000, "ema_halflife": 50, "seed": SEED,
}  # fmt: skip


def network(layout=NETWORK, seed=0):
    torch.manual_seed(seed)
    made = Denoiser(layout)
    for weight in made.parameters():
        if weight.dim() > 1:  # the last layers begin near 0 and would hide the others
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return made.eval()


def images(count=30, classes=3):
    pixels = torch.arange(count * 64).remainder(251).to(torch.uint8).view(count, 1, 8, 8)
    names = tuple("abc"[:classes])
    return Dataset("ramp", pixels, torch.arange(count) % 3 % max(classes, 1), names)


def make(context=CPU, dataset=None, **changes):
    stages = {"frozen_images": 0, "sid_images": 0}
    config = SidaConfig(**LOOP | stages | changes)
    return Distillation(Sida(config), network(), context, dataset=dataset or images())


def assert_identical(one, other):
    ours, theirs = one.state(), other.state()
    for name in ("fake_score", "generator", "ema"):
        for key, weight in ours[name].items():
            assert torch.equal(weight, theirs[name][key]), (name, key)


@pytest.mark.parametrize("augmented", [0.0, 0.5])
def test_a_step_is_the_algorithm_as_it_reads(augmented):
    """Facts by hand: draws, labels, both losses of either half, the cut, and one Adam step."""
    training = make(augment=augmented, alpha=1.2, adversarial_weight=3.0)
    psi, theta, phi = network(), network(), network()
    logged = training.step(0)
    data, zeros = images(), torch.zeros(4, AUGMENT_DIM)
    told = []
    for number in range(2):
        seed_rng(SEED, 0, FAKE_SCORE_PHASE, number)
        picked = torch.randint(30, (4,))
        real = (data.images[picked].float() / 127.5 - 1).contiguous(
            memory_format=torch.channels_last
        )
        c = F.one_hot(data.labels[picked], 3).float()
        z = torch.randn(4, 1, 8, 8).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            x = theta(2.5 * z, torch.tensor([2.5]), c)
        fake_how = real_how = zeros
        if augmented:
            x, fake_how = augment(x, augmented)
            real, real_how = augment(real, augmented)
        sigma = (torch.randn(4, 1, 1, 1) * 1.2 - 1.2).exp()
        n = sigma * torch.randn_like(x)
        b, l_fake = psi(x + n, sigma, c, fake_how, parts="both")
        l_real = psi(real + n, sigma, c, real_how, parts="logits")
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        entropy = F.softplus(-l_real).mean() + F.softplus(l_fake).mean()
        told.append(entropy.item() / 2)
        loss = (weight * (b - x) ** 2).sum() + (weight * entropy / 2).sum()
        (loss / BATCH).backward()
    assert logged["discriminator/cross-entropy"].item() == pytest.approx(sum(told) / 2, rel=1e-5)
    gradients = torch.cat([p.grad.flatten() for p in psi.parameters()])
    assert (gradients.abs() > 1).float().mean() > 0.05, "some would be cut"
    take_step(psi, clip=1.0)
    assert_close(training.fake_score.network, psi)

    for number in range(2):
        seed_rng(SEED, 0, GENERATOR_PHASE, number)
        z = torch.randn(4, 1, 8, 8).contiguous(memory_format=torch.channels_last)
        table = torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64)
        classes = torch.searchsorted(table, torch.rand(4, dtype=torch.float64), right=True)
        c = F.one_hot(classes, 3).float()
        x = theta(2.5 * z, torch.tensor([2.5]), c)
        sigma = generator_sigmas(torch.rand(4, 1, 1, 1))
        y = x + sigma * torch.randn_like(x)
        a = phi(y, sigma, c)
        b, logits = training.fake_score.network(y, sigma, c, parts="both")
        w = (x - a).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
        sid = (a - b) * ((a - x) - 1.2 * (a - b)) / w
        adversarial = F.softplus(-logits.clamp(-10, 10)).mean() / w
        ((0.5 * 100 * sid.sum() + 0.5 * 3 * 64 * adversarial.sum()) / BATCH).backward()
    take_step(theta)
    assert_close(training.generator.network, theta)


def take_step(net, clip=None):
    """Adam's first step with eps 1."""
    with torch.no_grad():
        for weight in net.parameters():
            if weight.grad is None:  # that of augmentation labels
                continue
            gradient = weight.grad if clip is None else weight.grad.clamp(-clip, clip)
            weight -= LR * gradient / (gradient.abs() + 1)


def assert_close(ours, theirs):
    start = network()
    moved = 0.0
    for one, other, before in zip(
        ours.parameters(), theirs.parameters(), start.parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-2 * LR)
        moved = max(moved, (one - before).abs().max().item())
    assert moved > LR / 4, "what was compared had changed"


def test_without_its_weights_it_is_sid_to_the_bit():
    """Nothing rests, nothing is halved, nothing is cut, and no image is read."""
    off = {"discriminator_weight": 0, "adversarial_weight": 0, "gradient_clip": 1e-9}
    config = SidaConfig(**LOOP | off | {"augment": 0.3})
    sida = Distillation(Sida(config), network(), CPU)
    sid = Distillation(Sid(SidConfig(**LOOP | {"augment": 0.3})), network(), CPU)
    for seen in (0, 8, 250_000):
        logged = [training.step(seen) for training in (sida, sid)]
        assert logged[0] == logged[1]
    assert_identical(sida, sid)
    assert "data" not in sida.identity()


def test_the_generator_rests_then_learns_by_sid_alone_then_by_both():
    weights = {"frozen_images": 16, "sid_images": 16}
    one, other = (make(adversarial_weight=w, **weights) for w in (0.0, 5.0))
    for seen in (0, 8, 16):  # not beyond 16 yet
        for training in (one, other):
            assert "gradient/generator" not in training.step(seen)
    start, now = network().state_dict(), one.state()
    for name in ("generator", "ema"):
        assert all(torch.equal(w, start[key]) for key, w in now[name].items())
    assert not all(torch.equal(w, start[key]) for key, w in now["fake_score"].items())
    for seen in (24, 32):
        assert one.step(seen)["gradient/generator"] == other.step(seen)["gradient/generator"]
    assert_identical(one, other)
    assert one.step(40)["gradient/generator"] != other.step(40)["gradient/generator"]


def test_beyond_them_sids_loss_counts_half():
    """To the bit, and the other half is the adversarial one's, whose weight is 0 here."""
    alone, both = (make(adversarial_weight=0, sid_images=n) for n in (100, 0))
    norms = [training.step(8)["gradient/generator"] for training in (alone, both)]
    assert norms[1] == norms[0] / 2


def test_the_kind_of_mean_reaches_both_losses():
    """Which differ in nothing else; `test_adversarial` has the numbers."""
    steps = [make(mean_over=mean, adversarial_weight=1.0).step(0) for mean in get_args(MeanOver)]
    for name in ("gradient/fake_score", "gradient/generator"):
        assert steps[0][name] != steps[1][name]
    assert steps[0]["loss/fake_score"] == steps[1]["loss/fake_score"]


def test_the_fake_scores_half_draws_the_classes_of_its_images_and_the_other_none():
    training = make()
    seen = []
    training.fake_score.network.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args[2], kwargs["parts"])), with_kwargs=True
    )
    training.step(0)
    seed_rng(SEED, 0, FAKE_SCORE_PHASE, 0)
    labels = F.one_hot(images().labels[torch.randint(30, (4,))], 3).float()
    assert [parts for _, parts in seen] == ["both", "logits"] * 2 + ["both"] * 2
    assert torch.equal(seen[0][0], labels)
    assert torch.equal(seen[1][0], labels), "generated and real images share classes"
    half = training.phases[GENERATOR_PHASE]._loss.args[0]
    with pytest.raises(ValueError, match="no real images here"):
        _ = half.real


def test_without_frequencies_classes_come_as_often_as_in_the_images():
    data = Dataset("odd", torch.zeros(8, 1, 8, 8), torch.tensor([0, 2, 2, 2] * 2), ("a", "b", "c"))
    config = SidaConfig(**LOOP)
    table = _cumulated_frequencies(config, 3, torch.device("cpu"), data)
    assert table.tolist() == [0.25, 0.25, 1.0]
    config = SidaConfig(**LOOP, class_frequencies=(1, 1, 2))
    table = _cumulated_frequencies(config, 3, torch.device("cpu"), data)
    assert table.tolist() == [0.25, 0.5, 1.0]


def test_a_gradient_that_is_not_finite_is_skipped_and_not_cut():
    training = make(discriminator_weight=1e38)
    before = copy.deepcopy(training.fake_score.network.state_dict())
    training.step(0)
    assert training.fake_score.skipped.item() == 1
    for name, weight in training.fake_score.network.state_dict().items():
        assert torch.equal(weight, before[name])


def test_a_generated_image_that_is_not_finite_is_left_out_of_all_means():
    training = make()
    spoiled, nan = torch.arange(4).view(4, 1, 1, 1) == 1, torch.tensor(torch.nan)
    training.generator.network.register_forward_hook(
        lambda _module, _inputs, output: torch.where(spoiled, nan, output)
    )
    logged = training.step(0)
    assert all(value.isfinite() for value in logged.values()), logged
    assert training.fake_score.skipped.item() == training.generator.skipped.item() == 0
    assert training.fake_score.left_out.item() == training.generator.left_out.item() == 0.25


def test_it_is_sharded():
    """Two passes through the encoder before one backward pass, and a decoder used once."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        spread = make(DistributedContext(torch.device("cpu"), shard=True))
        whole = make()
        for seen in (0, 8):
            spread.step(seen)
            whole.step(seen)
        expected, found = whole.state(), spread.state()
        for name in ("fake_score", "generator"):
            for key, weight in found[name].items():
                torch.testing.assert_close(weight, expected[name][key], rtol=1e-5, atol=1e-2 * LR)
    finally:
        dist.destroy_process_group()


def change(**fields):
    data = images()
    return Dataset(**{name: getattr(data, name) for name in data.__dataclass_fields__} | fields)


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        (None, "sida learns from real images too, and there are none"),
        (
            change(images=torch.zeros(30, 1, 9, 9, dtype=torch.uint8)),
            "ramp have 9x9 pixels and 1 channel, those of the teacher 8x8 pixels and 1 channel",
        ),
        (
            change(images=torch.zeros(30, 3, 8, 8, dtype=torch.uint8)),
            "ramp have 8x8 pixels and 3 channels, those of the teacher 8x8 pixels and 1 channel",
        ),
        (change(classes=("a", "b")), "ramp have 2 classes, the teacher 3"),
        (change(classes=()), "ramp have no classes, the teacher 3"),
    ],
)
def test_images_that_do_not_suit_are_refused(dataset, said):
    with pytest.raises(UserError, match=said) as refusal:
        Distillation(Sida(SidaConfig(**LOOP)), network(), CPU, dataset=dataset)
    assert "\n" not in str(refusal.value)


def test_a_network_without_an_encoder_is_refused():
    teacher = network()
    teacher.model.discriminates = False
    with pytest.raises(UserError, match="family ddpmpp has no encoder that can serve as a disc"):
        Distillation(Sida(SidaConfig(**LOOP)), teacher, CPU, dataset=images())
    Distillation(Sid(SidConfig(**LOOP)), teacher, CPU)


def test_a_run_goes_on_to_the_bit_with_its_own_images_alone():
    """Over the end of the generator's rest: the schedule counts what was seen before."""
    stages = {"frozen_images": 12, "sid_images": 12}
    whole, begun, resumed = (make(**stages) for _ in range(3))
    for seen in (0, 8):
        whole.step(seen)
        begun.step(seen)
    resumed.load_state(begun.state())
    for seen in (16, 24, 32):
        whole.step(seen)
        resumed.step(seen)
    assert_identical(whole, resumed)
    other = images()
    other.images[0, 0, 0, 0] += 1
    assert make(dataset=other).identity()["data"] != whole.identity()["data"]
