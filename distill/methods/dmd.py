"""Distribution matching distillation: the difference of two scores is a gradient to the image.

arXiv 2311.18828, section 3.2, without the regression term, and so without pairs: of the same
networks, noise levels and draws as SiD (`distill.methods.sid`), only the generator's loss is
another.
"""

import torch
from pydantic import Field

from distill.methods.denoising import denoising_loss, noised_images
from distill.methods.losses import distribution_matching_loss, sample_weight
from distill.training.learner import Loss
from distill.training.method import HalfStep, Method
from distill.training.nonfinite import masked_mean, masked_sum, nonfinite_samples, share
from distill.training_config import DistillationConfig


class DmdConfig(DistillationConfig):
    """The section [dmd] of a recipe; the defaults are SiD's, to be compared with it.

    Attributes:
        t_max: see `distill.schedules.generator_sigmas`.
        generator_loss_scale: the generator's loss is multiplied by this.
        fake_loss_scale: the fake-score network's loss is multiplied by this.
    """

    t_max: float = Field(default=800, gt=0, le=1000)
    generator_loss_scale: float = Field(default=100, gt=0)
    fake_loss_scale: float = Field(default=1, gt=0)


class Dmd(Method):
    """SiD's fake score, and DMD's gradient to the generator.

    They log both losses an element and the score gap E[(a - b)^2 / w], as SiD does.
    """

    name = "dmd"
    section = DmdConfig
    config: DmdConfig

    def fake_score_loss(self, half: HalfStep) -> Loss:
        """How well psi denoises the generator's images."""
        return denoising_loss(half, self.config.fake_loss_scale)

    def generator_loss(self, half: HalfStep) -> Loss:
        """Which way psi's score and phi's pull theta's images apart (DMD equations 7 and 8)."""
        config = self.config
        images, noisy, sigma, labels = noised_images(half, config.t_max)
        with torch.no_grad():  # the gradient is known: neither network is walked back
            a = half.teacher(noisy, sigma, labels)
            b = half.fake_score(noisy, sigma, labels)
        loss = distribution_matching_loss(images, a, b)
        left_out = nonfinite_samples(loss)  # as it is if one of x, a and b is
        logged = {
            "loss/generator": masked_mean(left_out, loss),
            "score gap": masked_mean(left_out, (a - b) ** 2 / sample_weight(images, a)),
        }
        total = masked_sum(left_out, loss, images) * (config.generator_loss_scale / config.batch)
        return Loss(total, share(left_out), logged)
