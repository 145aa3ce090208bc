"""The losses against the reference code's numbers and against a closed form."""

import numpy as np
import pytest
import torch

from distill.methods.losses import fake_score_loss, generator_loss
from distill.schedules import generator_sigmas, sampler_sigmas, training_sigmas
from tests.reference_numbers import FIXTURES


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURES / "sid_losses.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


def denoise(mixing, noisy, sigma):
    """The reference's toy denoiser: mix the channels, shrink with the noise, shift by 0.1."""
    return torch.einsum("ij,njhw->nihw", mixing, noisy) / (1 + sigma**2).sqrt() + 0.1


def assert_equal_to_1e5(actual, expected):
    scale = expected.abs().max()
    torch.testing.assert_close(actual / scale, expected / scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
@pytest.mark.parametrize("t_max", [800, 1000])
def test_generator_loss_and_its_gradient_equal_the_reference(reference, alpha, t_max):
    images = reference["images"].clone().requires_grad_()
    sigma = generator_sigmas(reference["u"], t_max=t_max)
    noisy = images + sigma * reference["noise"]
    teacher = denoise(reference["A"], noisy, sigma)
    fake = denoise(reference["B"], noisy, sigma)
    loss = generator_loss(images, teacher, fake, alpha)
    (gradient,) = torch.autograd.grad(loss.sum(), images)
    case = f"a{alpha}_t{t_max}"
    assert_equal_to_1e5(loss.detach(), reference[f"generator_loss_{case}"])
    assert_equal_to_1e5(gradient, reference[f"generator_grad_{case}"])


def test_fake_score_loss_equals_the_reference(reference):
    images, sigma = reference["images"], training_sigmas(reference["z"])
    denoised = denoise(reference["B"], images + sigma * reference["noise"], sigma)
    assert_equal_to_1e5(
        fake_score_loss(images, denoised, sigma, "edm"), reference["fake_score_loss"]
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 1.2])
def test_generator_gradient_equals_the_closed_form_for_gaussian_data(alpha):
    """Data N(0, s^2), G(z) = theta z, optimal denoisers: the expected gradient is known.

    dL/dtheta = 2 theta (A - B)((A - 1) - alpha (A - B)), unit weight, B held fixed.
    """
    torch.manual_seed(0)
    s, sigma = 0.7, 0.9
    theta = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    a = s**2 / (s**2 + sigma**2)
    b = (theta**2 / (theta**2 + sigma**2)).item()
    z, noise = torch.randn(2, 2_000_000, 1, 1, 1, dtype=torch.float64)
    images = theta * z
    noisy = images + sigma * noise
    loss = generator_loss(images, a * noisy, b * noisy, alpha, weighting="none").mean()
    (gradient,) = torch.autograd.grad(loss, theta)
    expected = 2 * theta.item() * (a - b) * ((a - 1) - alpha * (a - b))
    assert gradient.item() == pytest.approx(expected, rel=5e-3)


def test_the_weight_is_a_constant_to_the_gradient():
    """Weighted and plain gradients differ by one factor a sample."""
    torch.manual_seed(0)
    images, teacher, fake = torch.randn(3, 2, 1, 4, 4)
    images.requires_grad_()
    (weighted,) = torch.autograd.grad(generator_loss(images, teacher, fake, 1.0).sum(), images)
    (plain,) = torch.autograd.grad(generator_loss(images, teacher, fake, 1.0, "none").sum(), images)
    ratio = weighted / plain
    per_sample = ratio[:, :1, :1, :1].expand_as(ratio)
    torch.testing.assert_close(ratio, per_sample)


def test_an_unknown_weighting_is_refused():
    image = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="'sdi'"):
        generator_loss(image, image, image, 1.0, weighting="sdi")


def test_schedules_reach_their_published_ends():
    u = torch.tensor([0.0, 1.0], dtype=torch.float64)
    low, high = generator_sigmas(u).tolist()
    assert low == pytest.approx(0.002)
    assert high == pytest.approx(24.4, abs=0.05)
    sigmas = sampler_sigmas(18)
    assert sigmas[0].item() == pytest.approx(80)
    assert sigmas[-2].item() == pytest.approx(0.002)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()
