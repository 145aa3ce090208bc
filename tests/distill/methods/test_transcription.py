"""SiD's training is the algorithm as it reads: against tests/compare/transcription.py."""

import copy
from functools import partial

import pytest
import torch

from distill.data.augment import AUGMENT_DIM, augment
from distill.methods.sid import Sid, SidConfig
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.training.distillation import Distillation
from distill.training.distributed import DistributedContext
from distill.training.microbatches import seed_rng
from tests.compare.transcription import Draws, Settings, Transcription

SEED, STEPS, LR = 5, 4, 1e-3
NETWORK = EdmConfig(
    img_resolution=8, img_channels=3, label_dim=3, augment_dim=AUGMENT_DIM, model_channels=16,
    channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0,
)  # fmt: skip


class SameDraws(Draws):
    """The draws of `Sid`: seeded for each micro-batch, in its order of memory.

    Noise, masks of dropout and what an augmentation returns are laid out as their input is. So
    the transcription either computes in NCHW and only its noise is drawn as if in channels_last,
    or, `like_ours`, starts from latents in channels_last and all else follows.
    """

    def __init__(self, like_ours):
        self.like_ours = like_ours

    def begin(self, images_seen, phase, microbatch):
        seed_rng(SEED, images_seen, phase, microbatch)

    def latents(self, shape):
        z = super().latents(shape)
        return z.contiguous(memory_format=torch.channels_last) if self.like_ours else z

    def noise(self, images):
        if not self.like_ours:
            images = images.contiguous(memory_format=torch.channels_last)
        return torch.randn_like(images)


def teacher(dropout, channels):
    torch.manual_seed(0)
    shape = {"dropout": dropout, "model_channels": channels}
    network = Denoiser(NETWORK.model_copy(update=shape))
    for weight in network.parameters():
        if weight.dim() > 1:  # the last layers begin near 0 and would hide the others
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    return network


def both(microbatch, eps, dropout=0.0, augmented=0.0, channels=16):
    """Sid's training, its transcription, after STEPS steps, and the scalars of each step."""
    config = SidConfig(
        total_images=1000, batch=8, microbatch=microbatch, lr=LR, adam_eps=eps, alpha=1.2,
        augment=augmented, checkpoint_every=1000, ema_halflife=50, seed=SEED,
    )  # fmt: skip
    settings = Settings(batch=8, microbatch=microbatch, lr=LR, eps=eps, alpha=1.2, ema_halflife=50)
    network = teacher(dropout, channels)
    like_ours = bool(dropout or augmented)
    plain = copy.deepcopy(network)
    if like_ours:
        plain = plain.to(memory_format=torch.channels_last)
    bend = {"augment": partial(augment, probability=augmented)} if augmented else {}
    oracle = Transcription(plain, settings, SameDraws(like_ours), **bend)
    training = Distillation(
        Sid(config), copy.deepcopy(network), DistributedContext(torch.device("cpu"))
    )
    names = ("loss/fake_score", "loss/generator", "score gap")
    found, expected = [], []
    for step in range(STEPS):
        scalars = training.step(8 * step)
        found.append([scalars[name].item() for name in names])
        expected.append(oracle.step(8 * step))
    return training, oracle, torch.tensor(found), torch.tensor(expected)


def pairs(training, oracle):
    yield training.fake_score.network, oracle.psi
    yield training.generator.network, oracle.theta
    yield training.ema, oracle.ema


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"microbatch": 8},
        {"microbatch": 4},
        {"microbatch": 8, "dropout": 0.2},
        {"microbatch": 8, "augmented": 0.5},
    ],
    ids=str,
)
def test_losses_and_weights_are_those_of_the_plain_algorithm(options):
    """With Adam's eps at 1 a rounding error of a gradient stays one in the weight."""
    training, oracle, found, expected = both(eps=1.0, **options)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    for network, plain in pairs(training, oracle):
        start = teacher(network.config.dropout, 16)
        moved = 0.0
        for ours, theirs, before in zip(
            network.parameters(), plain.parameters(), start.parameters(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-2 * LR)
            moved = max(moved, (ours - before).abs().max().item())
        assert moved > LR  # what was compared had changed


def test_with_adams_own_eps_too():
    """beta1 = 0 and eps 1e-8: a step is +-lr however small the gradient.

    So where rounding decides the sign of a gradient, the weights part by up to 2 lr a step; those
    are few, and all others are equal.
    """
    training, oracle, found, expected = both(microbatch=8, eps=1e-8)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)
    for network, plain in pairs(training, oracle):
        apart = torch.cat(
            [
                (a - b).abs().flatten()
                for a, b in zip(network.parameters(), plain.parameters(), strict=True)
            ]
        )
        assert apart.max() <= 2 * STEPS * LR * 1.5
        assert (apart < LR / 100).float().mean() > 0.98
