"""SiDA's losses against the reference code's numbers, values and gradients."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.methods.adversarial import adversarial_loss, cross_entropy, discriminator_loss
from distill.methods.losses import fake_score_loss, generator_loss, sample_weight
from distill.networks.preconditioning import denoising_weight
from distill.schedules import generator_sigmas, training_sigmas
from tests.reference_numbers import FIXTURES

WEIGHTS = "BRPQEV"  # of the reference's toy network, see `doc` in its file


@pytest.fixture(scope="module")
def reference():
    with np.load(FIXTURES / "sida_losses.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file if name != "doc"}


class Toy:
    """The reference's linear network, by the formulas of `doc`."""

    def __init__(self, reference, name, grow=1.0):
        self.weights = {one: reference[f"{name}_{one}"].clone() for one in WEIGHTS}
        self.weights["P"] *= grow

    def __call__(self, noisy, sigma, labels, augment=None):
        """The denoised images and the logits."""
        w = self.weights
        c_in = (sigma**2 + 0.25).rsqrt()
        small = F.avg_pool2d(c_in * noisy, 2)
        shift = w["Q"] * (sigma.flatten(1).log() / 4) + labels @ w["E"]
        if augment is not None:
            shift = shift + augment @ w["V"]
        h = torch.einsum("ij,njhw->nihw", w["P"], small) + shift[:, :, None, None]
        raw = torch.einsum("ij,njhw->nihw", w["B"], c_in * noisy)
        raw = raw + torch.einsum("ij,njhw->nihw", w["R"], F.interpolate(h, scale_factor=2))
        denoised = 0.25 / (sigma**2 + 0.25) * noisy + 0.5 * sigma * c_in * raw
        return denoised, h.mean(dim=1, keepdim=True)


def assert_equal_to_1e5(actual, expected):
    """Relative to the largest value: the reference's own rounding is that large."""
    scale = expected.abs().max()
    torch.testing.assert_close(actual.detach() / scale, expected / scale, rtol=1e-5, atol=2e-6)


def nothing(count):
    return torch.zeros(count, 1, 1, 1, dtype=torch.bool)


def fake_score_total(reference, psi, rows, augmented=False):
    """What psi descends over these rows of a batch of six, and its parts."""
    which = "augmented_images" if augmented else "images"
    x = reference[which][rows]
    real = reference["augmented_real" if augmented else "real_images"][rows]
    labels_fake = reference["augment_labels_fake"][rows] if augmented else None
    labels_real = reference["augment_labels_real"][rows] if augmented else None
    sigma = training_sigmas(reference["z_sigma"][rows])
    noise, labels = sigma * reference["noise"][rows], reference["labels"][rows]
    denoised, fake = psi(x + noise, sigma, labels, labels_fake)
    _, judged = psi(real + noise, sigma, labels, labels_real)
    score = fake_score_loss(x, denoised, sigma, "edm")
    disc = discriminator_loss(judged, fake, denoising_weight("edm", sigma), nothing(len(x)))
    return (score.sum() + disc.sum()) / 6, score, disc, fake, judged


@pytest.mark.parametrize("case", ["psi", "psi_augmented", "psi_accumulated"])
def test_the_fake_scores_losses_and_gradients_equal_the_reference(reference, case):
    psi = Toy(reference, "psi")
    for weight in psi.weights.values():
        weight.requires_grad_()
    rounds = [slice(0, 3), slice(3, 6)] if case == "psi_accumulated" else [slice(0, 6)]
    augmented = case == "psi_augmented"
    totals = [fake_score_total(reference, psi, rows, augmented) for rows in rounds]
    total = sum(one[0] for one in totals)
    assert_equal_to_1e5(total, reference[f"{case}_total"])
    if case != "psi_accumulated":
        _, score, disc, fake, real = totals[0]
        assert_equal_to_1e5(score, reference[f"{case}_score_loss"])
        assert_equal_to_1e5(disc, reference[f"{case}_disc_loss"])
        assert_equal_to_1e5(fake, reference[f"{case}_logits_fake"])
        assert_equal_to_1e5(real, reference[f"{case}_logits_real"])
        for name, logits, is_real in (("fake", fake, False), ("real", real, True)):
            entropy = cross_entropy(logits, is_real, nothing(6))
            assert_equal_to_1e5(entropy.squeeze(), reference[f"{case}_bce_{name}"])
    total.backward()
    for name, weight in psi.weights.items():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        expected = reference[f"{case}_grad_{name}"]
        if expected.any():
            assert_equal_to_1e5(gradient, expected)
        else:
            assert not gradient.any()


@pytest.mark.parametrize("case", ["theta_a1.0", "theta_a1.2", "theta_clip_a1.0"])
def test_the_generators_losses_and_gradients_equal_the_reference(reference, case):
    psi = Toy(reference, "psi", grow=15.0 if "clip" in case else 1.0)
    images, u = reference["images"].clone().requires_grad_(), reference["u"]
    sid, adversarial, logits, w = generator_parts(reference, psi, images, u, float(case[-3:]))
    assert_equal_to_1e5(sid, reference[f"{case}_sid_loss"])
    assert_equal_to_1e5(logits, reference[f"{case}_logits"])
    assert_equal_to_1e5(w, reference[f"{case}_w"])
    assert_equal_to_1e5(adversarial, reference[f"{case}_adv_loss"])
    s, a = 100 * sid.sum() / 6, 0.01 * sid[0].numel() * adversarial.sum() / 6
    assert_equal_to_1e5(s, reference[f"{case}_S"])
    assert_equal_to_1e5(a, reference[f"{case}_A"])
    for loss, name in ((s, "before"), (a, "adv"), (0.5 * s + 0.5 * a, "after")):
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        assert_equal_to_1e5(gradient, reference[f"{case}_grad_{name}"])


def generator_parts(reference, psi, images, u, alpha, spoil=lambda b: b):
    sigma, labels = generator_sigmas(u), reference["labels"]
    noisy = images + sigma * reference["noise"]
    a, _ = Toy(reference, "phi")(noisy, sigma, labels)
    b, logits = psi(noisy, sigma, labels)
    sid = generator_loss(images, a, spoil(b), alpha)
    left_out = sid.detach().isfinite().all(dim=(1, 2, 3), keepdim=True).logical_not()
    w = sample_weight(images, a)
    return sid, adversarial_loss(logits, w, 10.0, left_out), logits, w


def test_a_sample_that_is_not_finite_is_left_out_as_in_the_reference(reference):
    """Its rows are dropped; its logits, which are finite, stay in the mean."""
    images = reference["images"].clone()

    def spoil(b):
        b = b.clone()
        b[2] = torch.nan
        return b

    psi = Toy(reference, "psi")
    sid, adversarial, logits, _ = generator_parts(
        reference, psi, images, reference["u"], 1.0, spoil
    )
    kept = [0, 1, 3, 4, 5]
    assert adversarial[2] == 0
    assert_equal_to_1e5(logits, reference["theta_nan_a1.0_logits"])
    assert_equal_to_1e5(sid[kept], reference["theta_nan_a1.0_sid_loss"])
    assert_equal_to_1e5(adversarial[kept], reference["theta_nan_a1.0_adv_loss"])
    assert_equal_to_1e5(100 * sid[kept].sum() / 6, reference["theta_nan_a1.0_S"])
    assert_equal_to_1e5(0.01 * 192 * adversarial.sum() / 6, reference["theta_nan_a1.0_A"])


@pytest.mark.parametrize("mean_over", ["microbatch", "sample"])
def test_what_is_not_finite_reaches_no_other_sample(mean_over):
    """Neither its logits nor its weight, in value or gradient."""
    torch.manual_seed(0)
    logits = torch.randn(4, 1, 2, 2)
    logits[1] = torch.nan
    logits.requires_grad_()
    weight = torch.tensor([1.0, 2.0, torch.nan, 3.0]).view(4, 1, 1, 1)
    left_out = torch.tensor([False, True, True, False]).view(4, 1, 1, 1)
    losses = [
        discriminator_loss(logits, 2 * logits, torch.ones(4, 1, 1, 1), left_out, mean_over),
        adversarial_loss(logits, weight, 10.0, left_out, mean_over),
    ]
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.isfinite().all()
        assert gradient.isfinite().all()
        assert not loss[[1, 2]].any()
        assert not gradient[1].any()


def test_a_mean_over_each_sample_keeps_its_weight_with_it():
    """And over a micro-batch it does not: one sample's logits change every sample's loss."""
    logits = torch.zeros(2, 1, 2, 2)
    moved = logits.clone()
    moved[1] = 3.0
    weight = torch.tensor([1.0, 100.0]).view(2, 1, 1, 1)
    alone = [discriminator_loss(x, x, weight, nothing(2), "sample")[0] for x in (logits, moved)]
    assert torch.equal(*alone)
    together = [discriminator_loss(x, x, weight, nothing(2))[0] for x in (logits, moved)]
    assert not torch.equal(*together)


def test_the_gradient_of_optimal_networks_vanishes_where_the_generator_is_the_data():
    """1-D data N(0, s^2): D's best logit is ln p_data - ln p_fake, and 0 where both are one."""
    s, sigma = 0.7, 0.9
    torch.manual_seed(0)
    z, noise = torch.randn(2, 200_000, 1, 1, 1, dtype=torch.float64)
    gradients = []
    for theta in (0.5 * s, s):
        scale = torch.tensor(theta, dtype=torch.float64, requires_grad=True)
        noisy = scale * z + sigma * noise
        real, fake = s**2 + sigma**2, theta**2 + sigma**2
        logits = -(noisy**2) / 2 * (1 / real - 1 / fake) - 0.5 * np.log(real / fake)
        loss = adversarial_loss(logits, torch.ones_like(z), 10.0, nothing(len(z)), "sample")
        gradients.append(torch.autograd.grad(loss.mean(), scale)[0].item())
    assert gradients[0] < -0.02, "a generator of too little spread is driven to more"
    assert abs(gradients[1]) < 1e-12
