"""DMD's gradient is the paper's formula, on Gaussian data the known one, and reaches theta so."""

import math

import pytest
import torch

from distill.methods.denoising import noised_images
from distill.methods.dmd import Dmd, DmdConfig
from distill.methods.losses import distribution_matching_loss
from distill.networks import Denoiser
from distill.networks.edm import EdmConfig
from distill.schedules import generator_sigmas
from distill.training.method import HalfStep

NETWORK = EdmConfig(
    img_resolution=8, img_channels=2, label_dim=3, model_channels=8, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(), dropout=0.0,
)  # fmt: skip
BATCH, BAD = 4, 2
CONFIG = DmdConfig(total_images=8, batch=BATCH, checkpoint_every=8, t_max=600)


def test_the_gradient_to_the_image_is_the_formula_and_none_reaches_the_denoisers():
    torch.manual_seed(0)
    images, a, b = (torch.randn(3, 2, 4, 4, requires_grad=True) for _ in range(3))
    loss = distribution_matching_loss(images, a, b)
    loss.sum().backward()
    expected = torch.stack(
        [
            (fake - real) / (image - real).abs().mean()
            for image, real, fake in zip(images, a, b, strict=True)
        ]
    ).detach()
    torch.testing.assert_close(images.grad, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(loss.detach(), expected**2 / 2, rtol=1e-5, atol=0)
    assert a.grad is b.grad is None


def test_an_image_that_is_the_teachers_own_divides_by_no_zero():
    """And a gradient far below the image's last digit is not lost in it."""
    images = torch.full((1, 1, 2, 2), 0.75, requires_grad=True)
    teacher = images.detach().clone()
    distribution_matching_loss(images, teacher, teacher + 2.0**-24).sum().backward()
    torch.testing.assert_close(images.grad, torch.full_like(images, 2.0**-24 / 1e-5))


@pytest.mark.parametrize("theta", [0.5, 0.7, 1.3])
def test_on_gaussian_data_it_is_the_known_one_and_vanishes_at_the_datas_scale(theta):
    """Data N(0, s^2), G(z) = theta z, optimal denoisers A y and B y.

    d/d theta = theta (B - A) / E|x - A y|, and x - A y is Gaussian: 0 at theta = s, and elsewhere
    its descent leads there.
    """
    torch.manual_seed(0)
    s = 0.7
    scale = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
    z, noise = torch.randn(2, 64, 1, 128, 128, dtype=torch.float64)
    for sigma in generator_sigmas(torch.tensor([0.4, 0.7, 1.0], dtype=torch.float64)).tolist():
        real, fake = s**2 / (s**2 + sigma**2), theta**2 / (theta**2 + sigma**2)
        images = scale * z
        noisy = (images + sigma * noise).detach()
        loss = distribution_matching_loss(images, real * noisy, fake * noisy).mean()
        (gradient,) = torch.autograd.grad(loss, scale)
        spread = math.hypot((1 - real) * theta, real * sigma)
        expected = theta * (fake - real) / (spread * math.sqrt(2 / math.pi))
        # The noise's part of y is not correlated with z; of a million pixels some is left.
        rest = abs(fake - real) * sigma / spread * 5 / math.sqrt(z.numel())
        assert gradient.item() == pytest.approx(expected, rel=5e-3, abs=rest)
        assert (gradient > 0) == (theta > s)


def half_step():
    torch.manual_seed(0)
    networks = [Denoiser(NETWORK).eval() for _ in range(3)]
    for network in networks:
        for weight in network.parameters():
            if weight.dim() > 1:  # the last layers begin near 0 and would hide the others
                torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    for frozen in networks[:2]:
        frozen.requires_grad_(False)
    return HalfStep(*networks, CONFIG, torch.device("cpu"), None)


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
@pytest.mark.parametrize("place", ["teacher", "fake_score", "generator"])
def test_theta_learns_from_every_sample_that_is_finite(place, value):
    """By the gradient of the formula, put to the images by hand."""
    kept = [row for row in range(BATCH) if value is None or row != BAD]
    half = half_step()
    torch.manual_seed(1)
    images, noisy, sigma, labels = noised_images(half, CONFIG.t_max)
    a, b = half.teacher(noisy, sigma, labels), half.fake_score(noisy, sigma, labels)
    gradient = torch.zeros_like(images)
    for row in kept:
        gradient[row] = (b[row] - a[row]) / (images[row] - a[row]).abs().mean()
    images.backward(100 / BATCH * gradient.detach())
    expected = [weight.grad.clone() for weight in half.generator.parameters()]
    half.generator.zero_grad()

    def spoil(_module, _inputs, output):
        bad = torch.arange(BATCH).view(-1, 1, 1, 1) == BAD
        return torch.where(bad, torch.tensor(value), output)

    if value is not None:
        getattr(half, place).register_forward_hook(spoil)
    torch.manual_seed(1)
    loss = Dmd(CONFIG).generator_loss(half)
    loss.total.backward()
    assert loss.left_out.item() == 1 - len(kept) / BATCH
    assert all(number.isfinite() for number in loss.logged.values())
    for weight, right in zip(half.generator.parameters(), expected, strict=True):
        # A kernel of its own sums the bias of a layer: rounding of the largest is what is left.
        close = 1e-5 * max(1e-3, right.abs().max().item())
        torch.testing.assert_close(weight.grad, right, rtol=1e-4, atol=close)
