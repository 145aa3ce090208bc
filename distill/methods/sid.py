"""Score identity Distillation: a teacher becomes a one-step generator, without data.

arXiv 2404.04057, algorithm 1: the losses. The three networks and their steps are those of every
distillation (`distill.training.distillation`).
"""

from pydantic import Field

from distill.methods.denoising import denoising_loss, noised_images
from distill.methods.losses import Weighting, generator_loss_parts, sample_weight
from distill.methods.uncertainty import denoised_with_uncertainty, weighed_loss
from distill.training.learner import Loss
from distill.training.method import HalfStep, Method
from distill.training.nonfinite import masked_mean, masked_sum, nonfinite_samples, share
from distill.training_config import DistillationConfig


class SidConfig(DistillationConfig):
    """The section [sid] of a recipe: how to distil by SiD.

    The defaults are the paper's for CIFAR-10, but for alpha: 1.2 there, here the safe start.

    Attributes:
        alpha: see `distill.methods.losses.generator_loss`; 1.0 is the safe start on new data.
        t_max: see `distill.schedules.generator_sigmas`.
        weighting: see `distill.methods.losses.generator_loss`.
        generator_loss_scale: the generator's loss is multiplied by this.
        fake_loss_scale: the fake-score network's loss is multiplied by this.
    """

    alpha: float = 1.0
    t_max: float = Field(default=800, gt=0, le=1000)
    weighting: Weighting = "sid"
    generator_loss_scale: float = Field(default=100, gt=0)
    fake_loss_scale: float = Field(default=1, gt=0)


class Sid(Method):
    """SiD's two losses.

    They log both losses an element, the generator's two parts and the score gap
    E[(a - b)^2 / w], this process's mean over the samples that are not left out.
    """

    name = "sid"
    section = SidConfig
    config: SidConfig

    def fake_score_loss(self, half: HalfStep) -> Loss:
        """How well psi denoises the generator's images (SiD equation 22)."""
        return denoising_loss(half, self.config.fake_loss_scale)

    def generator_loss(self, half: HalfStep) -> Loss:
        """How far psi's score is from phi's at theta's images (SiD equations 20, 23, 24)."""
        config = self.config
        images, noisy, sigma, labels = noised_images(half, config.t_max)
        a = half.teacher(noisy, sigma, labels)
        inputs = (noisy, sigma, labels)
        b, u = denoised_with_uncertainty(half.fake_score, half.teacher.config, *inputs)
        identity, gap = (
            weighed_loss(part, u) for part in generator_loss_parts(images, a, b, config.weighting)
        )
        loss = identity - config.alpha * gap
        left_out = nonfinite_samples(loss)  # as it is if one of x, a and b is
        logged = {
            "loss/generator": masked_mean(left_out, loss),
            "loss/generator: score identity": masked_mean(left_out, identity),
            "loss/generator: - alpha x gap": -config.alpha * masked_mean(left_out, gap),
            "score gap": masked_mean(left_out, (a - b) ** 2 / sample_weight(images, a)),
        }
        total = masked_sum(left_out, loss, images) * (config.generator_loss_scale / config.batch)
        return Loss(total, share(left_out), logged)
