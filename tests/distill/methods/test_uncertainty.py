"""Losses of denoisers that know how far they may be off, against the reference code's numbers."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.importing import load_network
from distill.methods.adversarial import adversarial_loss, discriminator_loss
from distill.methods.losses import fake_score_loss, generator_loss, sample_weight
from distill.methods.uncertainty import (
    denoised_with_uncertainty,
    weighed_denoising_loss,
    weighed_loss,
)
from distill.networks.preconditioning import denoising_weight
from distill.schedules import generator_sigmas, training_sigmas
from tests.reference_numbers import FIXTURES


def reference(name):
    with np.load(FIXTURES / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file if key != "doc"}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * float(theirs.abs().max()))


def test_edm2s_loss_equals_the_reference():
    case, network = reference("edm2"), load_network(FIXTURES / "edm2.pkl")
    images, sigma = case["loss_images"], training_sigmas(case["loss_z"], -0.4, 1.0)
    noisy = images + sigma * case["loss_noise"]
    with torch.no_grad():
        denoised, u = denoised_with_uncertainty(
            network, network.config, noisy, sigma, case["labels"]
        )
    close(weighed_denoising_loss(fake_score_loss(images, denoised, sigma, "edm"), u), case["loss"])


@pytest.fixture(scope="module")
def case():
    return reference("sida_losses")


def toy(case, which, noisy, sigma):
    """The linear toy network of the fixture: what it denoises, its logits, and its u."""
    b, r, p, q, e, u = (case[f"{which}_{name}"] for name in "BRPQEU")
    c_in = (sigma**2 + 0.25).rsqrt()
    t = sigma.log() / 4
    h = torch.einsum("kc,nchw->nkhw", p, F.avg_pool2d(c_in * noisy, 2))
    h = h + q.view(-1, 1, 1) * t + (case["labels"] @ e)[:, :, None, None]
    raw = torch.einsum("ck,nkhw->nchw", b, c_in * noisy)
    raw = raw + torch.einsum("ck,nkhw->nchw", r, F.interpolate(h, scale_factor=2.0))
    denoised = 0.25 * c_in**2 * noisy + 0.5 * sigma * c_in * raw
    return denoised, h.mean(dim=1, keepdim=True), u[0] + u[1] * t


def test_sids_and_sidas_losses_on_edm2_equal_the_reference(case):
    images, noise = case["images"], case["noise"]
    sigma = training_sigmas(case["z_sigma"], -0.4, 1.0)
    denoised, fake, u = toy(case, "psi", images + sigma * noise, sigma)
    loss = weighed_denoising_loss(fake_score_loss(images, denoised, sigma, "edm"), u)
    close(loss, case["edm2_psi_score_loss"])
    _, real, _ = toy(case, "psi", case["real_images"] + sigma * noise, sigma)
    weight = weighed_loss(denoising_weight("edm", sigma), u)
    nothing = torch.zeros(len(images), 1, 1, 1, dtype=torch.bool)
    close(discriminator_loss(real, fake, weight, nothing), case["edm2_psi_disc_loss"])

    sigma = generator_sigmas(case["u"])
    noisy = images + sigma * noise
    a, _, _ = toy(case, "phi", noisy, sigma)
    b, logits, u = toy(case, "psi", noisy, sigma)
    loss = weighed_loss(generator_loss(images, a, b, alpha=1.0), u)
    close(loss, case["edm2_theta_a1.0_sid_loss"])
    adversarial = adversarial_loss(logits, sample_weight(images, a), 10, nothing)
    close(weighed_loss(adversarial, u), case["edm2_theta_a1.0_adv_loss"])


def test_the_loss_is_least_where_the_uncertainty_is_the_loss():
    loss = torch.full((1, 1, 2, 2), 3.0)
    at = [
        weighed_denoising_loss(loss, torch.full((1, 1, 1, 1), 3.0 * factor).log()).mean()
        for factor in (0.9, 1.0, 1.1)
    ]
    assert at[1] < at[0]
    assert at[1] < at[2]


def test_without_an_uncertainty_losses_stay_as_they_are():
    loss = torch.randn(2, 1, 2, 2)
    assert weighed_denoising_loss(loss, None) is loss
    assert weighed_loss(loss, None) is loss
