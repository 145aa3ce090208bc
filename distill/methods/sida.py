"""SiD with an adversarial loss: real images tell the generator what its teacher cannot.

SiDA, arXiv 2410.14919. The discriminator is the encoder of the fake score, which learns in one
step to denoise the generator's images and to tell them from real ones. Started from a generator
that SiD has finished ("SiD2A") it takes far fewer images.
"""

import torch
from pydantic import Field
from torch import Tensor

from distill.data.latents import TrainingData
from distill.errors import UserError
from distill.methods.adversarial import (
    MeanOver,
    adversarial_loss,
    cross_entropy,
    discriminator_loss,
    right_sign,
)
from distill.methods.denoising import noised_images
from distill.methods.losses import fake_score_loss, generator_loss_parts, sample_weight
from distill.methods.sid import Sid, SidConfig
from distill.methods.uncertainty import (
    denoised_with_uncertainty,
    weighed_denoising_loss,
    weighed_loss,
)
from distill.networks import Denoiser
from distill.networks.preconditioning import denoising_weight
from distill.schedules import training_sigmas
from distill.training.learner import Loss
from distill.training.method import HalfStep
from distill.training.nonfinite import (
    masked_mean,
    masked_sum,
    nonfinite_samples,
    share,
    zero_masked,
)
from distill.training_config import DistillationConfig


class SidaConfig(SidConfig):
    """The section [sida] of a recipe: how to distil by SiDA.

    The defaults are the paper's for CIFAR-10. Without both of the adversarial weights it is SiD
    itself, to the bit, and needs no images.

    Attributes:
        microbatch: as everywhere; the paper's mean over it makes it a part of the losses here.
        discriminator_weight: the discriminator's loss is multiplied by this. It counts one number
            an image, the fake score's own each element.
        adversarial_weight: the generator's adversarial loss is multiplied by this.
        logit_clip: the generator follows no logit beyond it, either way.
        frozen_images: the generator rests for so many images at the start, while the fake score
            and the discriminator in it catch up.
        sid_images: for so many more the generator learns by SiD's loss alone. After them it has
            half of each.
        gradient_clip: each element of the fake score's gradient is cut to this much, either way,
            before Adam sees it; 0 cuts nothing. A gradient that is not finite skips the step, as in
            every training here, where the paper's code puts 0 or 100,000 for such an element.
        mean_over: see `distill.methods.adversarial`.
    """

    microbatch: int = Field(default=32, gt=0)
    discriminator_weight: float = Field(default=1, ge=0)
    adversarial_weight: float = Field(default=0.01, ge=0)
    logit_clip: float = Field(default=10, gt=0)
    frozen_images: int = Field(default=100_000, ge=0)
    sid_images: int = Field(default=100_000, ge=0)
    gradient_clip: float = Field(default=1, ge=0)
    mean_over: MeanOver = "microbatch"

    @property
    def adversarial(self) -> bool:
        """Whether anything in it is adversarial."""
        return self.discriminator_weight > 0 or self.adversarial_weight > 0


class Sida(Sid):
    """SiDA's two losses.

    They log what SiD's do, the adversarial part of the generator's loss in the unit of the others,
    the discriminator's cross-entropy (0.69 where it cannot tell), and its accuracy on real and on
    generated images: the share of its logits with the right sign.
    """

    name = "sida"
    section = SidaConfig
    config: SidaConfig
    needs_images = True

    def __init__(self, config: DistillationConfig) -> None:
        super().__init__(config)
        self.needs_images = self.config.adversarial
        # As in the paper's code, where the fake score's weights escape what is meant to hold them.
        self.holds_fake_score = not self.config.adversarial
        if self.config.adversarial and self.config.gradient_clip:
            self.gradient_clip = self.config.gradient_clip
        # How much of each loss the generator follows in this step: scalars, on the device.
        self._sid_share: Tensor | None = None
        self._adversarial_share: Tensor | None = None

    def check(self, teacher: Denoiser, dataset: TrainingData | None) -> None:
        """See whether it can distil a teacher: the images, and the encoder that is to judge."""
        super().check(teacher, dataset)
        if self.config.adversarial and not teacher.model.discriminates:
            raise UserError(
                f"a network of the family {teacher.config.architecture} has no encoder that can "
                f"serve as a discriminator, which {self.name} needs: take sid"
            )

    def begin_step(self, images_seen: int, device: torch.device) -> None:
        """Fill in how much of each loss the generator follows."""
        if self._sid_share is None or self._adversarial_share is None:
            self._sid_share = torch.zeros((), device=device)
            self._adversarial_share = torch.zeros((), device=device)
        both = _beyond(images_seen, self.config.frozen_images + self.config.sid_images)
        self._sid_share.fill_(0.5 if both else 1.0)
        self._adversarial_share.fill_(0.5 if both else 0.0)

    def generator_rests(self, images_seen: int) -> bool:
        """Over the first `frozen_images`."""
        config = self.config
        return config.adversarial and not _beyond(images_seen, config.frozen_images)

    def fake_score_loss(self, half: HalfStep) -> Loss:
        """How well psi denoises the generator's images, and tells them from real ones.

        Generated and real images share classes, noise and noise levels, but no augmentation.
        """
        config = self.config
        if not config.adversarial:
            return super().fake_score_loss(half)
        real, labels = half.real
        latents = half.draw_latents()
        with torch.no_grad():
            images = half.generate(latents, labels)
        images, augmentation = half.augment(images)
        real, real_augmentation = half.augment(real)
        # A NaN must not enter psi, where it would reach the gradients of all weights.
        nothing_to_learn = nonfinite_samples(images)
        images = zero_masked(nothing_to_learn, images)
        normal = torch.randn(len(images), 1, 1, 1, device=images.device)
        sigma = training_sigmas(normal, config.noise_mean, config.noise_std)
        noise = sigma * torch.randn_like(images)
        network, inputs = half.teacher.config, (images + noise, sigma, labels, augmentation)
        (denoised, fake_logits), u = denoised_with_uncertainty(
            half.fake_score, network, *inputs, parts="both"
        )
        real_logits = half.fake_score(
            real + noise, sigma, labels, real_augmentation, parts="logits"
        )
        loss = fake_score_loss(images, denoised, sigma, network.preconditioning)
        loss = weighed_denoising_loss(loss, u)
        left_out = nothing_to_learn | nonfinite_samples(loss)
        left_out = left_out | nonfinite_samples(fake_logits) | nonfinite_samples(real_logits)
        weight = denoising_weight(network.preconditioning, sigma)
        discriminator = discriminator_loss(
            real_logits, fake_logits, weighed_loss(weight, u), left_out, config.mean_over
        )
        score_scale = config.fake_loss_scale / config.batch
        total = masked_sum(left_out, loss, denoised) * score_scale
        total = total + discriminator.sum() * (config.discriminator_weight / config.batch)
        entropies = [
            cross_entropy(logits.detach(), is_real, left_out).squeeze()
            for logits, is_real in ((real_logits, True), (fake_logits, False))
        ]
        logged = {
            "loss/fake_score": masked_mean(left_out, loss),
            "discriminator/cross-entropy": (entropies[0] + entropies[1]) / 2,
            "discriminator/accuracy on real": masked_mean(left_out, right_sign(real_logits, True)),
            "discriminator/accuracy on fake": masked_mean(left_out, right_sign(fake_logits, False)),
        }
        return Loss(total, share(left_out), logged)

    def generator_loss(self, half: HalfStep) -> Loss:
        """How far psi's score is from phi's at theta's images, and how they pass for real ones."""
        config = self.config
        if not config.adversarial:
            return super().generator_loss(half)
        assert self._sid_share is not None
        assert self._adversarial_share is not None
        images, noisy, sigma, labels = noised_images(half, config.t_max)
        a = half.teacher(noisy, sigma, labels)
        inputs = (noisy, sigma, labels)
        (b, logits), u = denoised_with_uncertainty(
            half.fake_score, half.teacher.config, *inputs, parts="both"
        )
        identity, gap = (
            weighed_loss(part, u) for part in generator_loss_parts(images, a, b, config.weighting)
        )
        loss = identity - config.alpha * gap
        left_out = nonfinite_samples(loss)  # as it is if one of x, a and b is
        weight = sample_weight(images, a)
        judged_weight = weight if config.weighting == "sid" else torch.ones_like(weight)
        adversarial = adversarial_loss(
            logits, judged_weight, config.logit_clip, left_out, config.mean_over
        )
        adversarial = weighed_loss(adversarial, u)
        # It counts as if it stood at each element, by the weight that it has beside SiD's loss.
        ratio = config.adversarial_weight / config.generator_loss_scale
        summed = masked_sum(left_out, loss, images) * self._sid_share
        judged = adversarial.sum() * (images[0].numel() * ratio) * self._adversarial_share
        logged = {
            "loss/generator": masked_mean(left_out, loss),
            "loss/generator: score identity": masked_mean(left_out, identity),
            "loss/generator: - alpha x gap": -config.alpha * masked_mean(left_out, gap),
            "loss/generator: adversarial": ratio * masked_mean(left_out, adversarial),
            "score gap": masked_mean(left_out, (a - b) ** 2 / weight),
        }
        total = (summed + judged) * (config.generator_loss_scale / config.batch)
        return Loss(total, share(left_out), logged)


def _beyond(images_seen: int, mark: int) -> bool:
    """Whether more images than the mark were seen; a mark of 0 stands before the first step."""
    return images_seen > mark or mark == 0
