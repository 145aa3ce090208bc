"""What methods of distillation share: how psi learns, and where psi and phi are compared.

The order of the random draws is part of every method that uses these functions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from distill.methods.losses import fake_score_loss
from distill.methods.uncertainty import denoised_with_uncertainty, weighed_denoising_loss
from distill.schedules import generator_sigmas, training_sigmas
from distill.training.learner import Loss
from distill.training.method import HalfStep
from distill.training.nonfinite import (
    masked_mean,
    masked_sum,
    nonfinite_samples,
    share,
    zero_masked,
)


class NoisedImages(NamedTuple):
    """The generator's images of one micro-batch, and what the denoisers are given of them.

    Attributes:
        images: x [N, C, H, W]; gradients reach the generator.
        noisy: x + sigma eps.
        sigma: noise levels [N, 1, 1, 1].
        labels: one-hot classes; None: no classes.
    """

    images: Tensor
    noisy: Tensor
    sigma: Tensor
    labels: Tensor | None


def denoising_loss(half: HalfStep, scale: float) -> Loss:
    """How well psi denoises the generator's images (SiD equation 22), times `scale`."""
    config = half.config
    latents, labels = half.draw_inputs()
    with torch.no_grad():
        images = half.generate(latents, labels)
    images, augmentation = half.augment(images)
    # A NaN must not enter psi, where it would reach the gradients of all weights.
    nothing_to_learn = nonfinite_samples(images)
    images = zero_masked(nothing_to_learn, images)
    normal = torch.randn(len(images), 1, 1, 1, device=images.device)
    sigma = training_sigmas(normal, config.noise_mean, config.noise_std)
    noisy = images + sigma * torch.randn_like(images)
    network, inputs = half.teacher.config, (noisy, sigma, labels, augmentation)
    denoised, u = denoised_with_uncertainty(half.fake_score, network, *inputs)
    loss = fake_score_loss(images, denoised, sigma, network.preconditioning)
    loss = weighed_denoising_loss(loss, u)
    left_out = nothing_to_learn | nonfinite_samples(loss)
    total = masked_sum(left_out, loss, denoised) * (scale / config.batch)
    return Loss(total, share(left_out), {"loss/fake_score": masked_mean(left_out, loss)})


def noised_images(half: HalfStep, t_max: float) -> NoisedImages:
    """Fresh images of the generator, noised at SiD's levels (`schedules.generator_sigmas`)."""
    latents, labels = half.draw_inputs()
    images = half.generate(latents, labels)
    u = torch.rand(len(images), 1, 1, 1, device=images.device)
    sigma = generator_sigmas(u, t_max)
    noisy = images + sigma * torch.randn_like(images)
    return NoisedImages(images, noisy, sigma, labels)
