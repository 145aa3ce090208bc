"""Score identity Distillation: a teacher becomes a one-step generator, without data.

arXiv 2404.04057, algorithm 1. Three networks of one architecture, all starting from the
teacher's weights: phi (the teacher, frozen), psi (the fake score: a denoiser of the
generator's own images) and theta (the generator). They alternate, one step each.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.checkpoints import sha256_of_weights
from distill.data.augment import AUGMENT_DIM, augment
from distill.data.datasets import one_hot
from distill.errors import UserError
from distill.methods.losses import fake_score_loss, generator_loss_parts, sample_weight
from distill.networks import Denoiser
from distill.networks.layers import use_winograd
from distill.recipe import SidConfig
from distill.sampling import one_step, sample_inputs
from distill.schedules import generator_sigmas, training_sigmas
from distill.training.distributed import World
from distill.training.learner import (
    Learner,
    Loss,
    ema_beta,
    load_weights,
    update_ema,
    whole_weights,
)
from distill.training.loop import channels_last
from distill.training.microbatches import seed_draws, share_of_batch
from distill.training.nonfinite import mean_without, nonfinite_samples, share, sum_without, zeroed
from distill.training.precision import compute_dtype

FAKE_SCORE_PHASE, GENERATOR_PHASE = 0, 1


class SidTraining:
    """The distillation of one teacher; see `distill.training.loop.Training`.

    Args:
        teacher: what is distilled.
        config: how.
        world: this process among those of the run.
        start: the generator's first weights, of a network of the teacher's shape; None takes the
            teacher's. The fake score starts from the teacher in any case.

    Attributes:
        teacher: phi, in eval mode, its weights frozen.
        fake_score: psi, trained in its own phase, frozen in the generator's.
        generator: theta.
        ema: the running average of theta, which is what gets exported.
    """

    def __init__(
        self,
        teacher: Denoiser,
        config: SidConfig,
        world: World,
        start: Denoiser | None = None,
    ) -> None:
        self.config, self.world = config, world
        self.microbatches = share_of_batch(config, world)
        frequencies = _frequencies(config, teacher.config.label_dim)
        self.frequencies = (
            None if frequencies is None else torch.tensor(frequencies, device=world.device)
        )
        _check_augmentation(config, teacher)
        self._identity = {"teacher": sha256_of_weights(teacher)}
        if start is not None:
            self._identity["generator"] = sha256_of_weights(start)
        teacher = _with_dropout(teacher, config.dropout).to(world.building_site)
        teacher = channels_last(teacher).eval()
        teacher.compute_dtype = compute_dtype(config.precision, world.device)
        # One after the other, so that of networks to be sharded no more than two are whole.
        self.ema = world.fixed(_copy_from(start, teacher).requires_grad_(False))
        if world.device.type == "cpu" and config.precision == "float32":
            use_winograd(teacher)  # not the average, which draws the pictures and is exported
        self.fake_score = self._learner(copy.deepcopy(teacher), config.betas)
        betas = config.generator_betas or config.betas
        self.generator = self._learner(_copy_from(start, teacher), betas)
        self.teacher = world.fixed(teacher.requires_grad_(False))

    def _learner(self, network: Denoiser, betas: tuple[float, float]) -> Learner:
        return Learner(network, self.world, betas, self.config.eps)

    @property
    def learners(self) -> dict[str, Learner]:
        """The networks that learn, by name."""
        return {"fake score": self.fake_score, "generator": self.generator}

    def identity(self) -> dict[str, Any]:
        """The teacher, by its weights."""
        return self._identity

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One step of psi, one of theta, one of the average; `batch` images are counted.

        Returns:
            Both losses an element, the generator's two parts and the score gap E[(a - b)^2 / w],
            this process's mean over the samples that are not left out; the norms of both
            gradients.
        """
        config = self.config
        rate_share = learning_rate_share(config, images_seen)

        self.generator.network.eval().requires_grad_(False)
        self.fake_score.network.train().requires_grad_(True)
        losses = [partial(self._fake_score_loss, images_seen, i) for i in self.microbatches]
        rate = rate_share * (config.fake_lr or config.lr)
        fake, fake_norm = self.fake_score.descend(losses, rate)

        self.generator.network.train().requires_grad_(True)
        self.fake_score.network.eval().requires_grad_(False)
        losses = [partial(self._generator_loss, images_seen, i) for i in self.microbatches]
        made, norm = self.generator.descend(losses, rate_share * config.lr)

        beta = ema_beta(config.batch, config.ema_halflife, images_seen)
        update_ema(self.ema, self.generator.network, beta)
        return fake | made | {"gradient/fake_score": fake_norm, "gradient/generator": norm}

    def _fake_score_loss(self, images_seen: int, microbatch: int) -> Loss:
        """How well psi denoises the generator's images (SiD equation 22)."""
        config = self.config
        seed_draws(config.seed, images_seen, FAKE_SCORE_PHASE, microbatch)
        latents, labels = self._draw_inputs()
        with torch.no_grad():
            images = one_step(self.generator.network, latents, labels, config.sigma_init)
        images, augmentation = self._augment(images)
        # A NaN must not enter psi, where it would reach the gradients of all weights.
        nothing_to_learn = nonfinite_samples(images)
        images = zeroed(nothing_to_learn, images)
        normal = torch.randn(len(images), 1, 1, 1, device=images.device)
        sigma = training_sigmas(normal, config.noise_mean, config.noise_std)
        noisy = images + sigma * torch.randn_like(images)
        denoised = self.fake_score.call(noisy, sigma, labels, augmentation)
        loss = fake_score_loss(images, denoised, sigma)
        left_out = nothing_to_learn | nonfinite_samples(loss)
        total = sum_without(left_out, loss, denoised) * (config.fake_loss_scale / config.batch)
        return Loss(total, share(left_out), {"loss/fake_score": mean_without(left_out, loss)})

    def _generator_loss(self, images_seen: int, microbatch: int) -> Loss:
        """How far psi's score is from phi's at theta's images (SiD equations 20, 23, 24)."""
        config = self.config
        seed_draws(config.seed, images_seen, GENERATOR_PHASE, microbatch)
        latents, labels = self._draw_inputs()
        augmentation = self._no_augmentation(len(latents))
        images = one_step(self.generator.call, latents, labels, config.sigma_init, augmentation)
        u = torch.rand(len(images), 1, 1, 1, device=images.device)
        sigma = generator_sigmas(u, config.t_max)
        noisy = images + sigma * torch.randn_like(images)
        a = self.teacher(noisy, sigma, labels)
        b = self.fake_score.network(noisy, sigma, labels)
        identity, gap = generator_loss_parts(images, a, b, config.weighting)
        loss = identity - config.alpha * gap
        left_out = nonfinite_samples(loss)  # as it is if one of x, a and b is
        logged = {
            "loss/generator": mean_without(left_out, loss),
            "loss/generator: score identity": mean_without(left_out, identity),
            "loss/generator: - alpha x gap": -config.alpha * mean_without(left_out, gap),
            "score gap": mean_without(left_out, (a - b) ** 2 / sample_weight(images, a)),
        }
        total = sum_without(left_out, loss, images) * (config.generator_loss_scale / config.batch)
        return Loss(total, share(left_out), logged)

    def _draw_inputs(self) -> tuple[Tensor, Tensor | None]:
        """Fresh latents of one micro-batch, and one-hot labels (None without classes)."""
        network, device, count = self.teacher.config, self.world.device, self.config.images_a_call
        shape = (count, network.img_channels, network.img_resolution, network.img_resolution)
        latents = torch.randn(shape, device=device).contiguous(memory_format=torch.channels_last)
        if not network.label_dim:
            return latents, None
        if self.frequencies is None:
            labels = torch.randint(network.label_dim, (count,), device=device)
        else:
            labels = torch.multinomial(self.frequencies, count, replacement=True)
        return latents, one_hot(labels, network.label_dim)

    def _augment(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.config.augment:
            return augment(images, self.config.augment)
        return images, self._no_augmentation(len(images))

    def _no_augmentation(self, count: int) -> Tensor | None:
        """Zeros, so that every weight has a gradient for the processes to exchange."""
        width = self.teacher.config.augment_dim
        return torch.zeros(count, width, device=self.world.device) if width else None

    def state(self) -> dict[str, Any]:
        """Weights of psi, theta and its average, and Adam's moments; every process must ask."""
        return {
            "fake_score": whole_weights(self.fake_score.network),
            "generator": whole_weights(self.generator.network),
            "ema": whole_weights(self.ema),
            "fake_optimizer": self.fake_score.optimizer_state(),
            "generator_optimizer": self.generator.optimizer_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        load_weights(self.fake_score.network, state["fake_score"])
        load_weights(self.generator.network, state["generator"])
        load_weights(self.ema, state["ema"])
        self.fake_score.load_optimizer_state(state["fake_optimizer"])
        self.generator.load_optimizer_state(state["generator_optimizer"])

    @torch.no_grad()
    def samples(self, count: int | None = None) -> Tensor:
        """Ten pictures a class (a hundred without classes) or the first of them, in one step."""
        latents, labels = sample_inputs(self.ema.config, self.world.device, count)
        return one_step(self.ema, latents, labels, self.config.sigma_init)


def learning_rate_share(config: SidConfig, images_seen: int) -> float:
    """1, then a line down to 0 over the last `cooldown` images of the run."""
    if not config.cooldown:
        return 1.0
    return min(1.0, max(0.0, (config.total_images - images_seen) / config.cooldown))


def _frequencies(config: SidConfig, classes: int) -> tuple[float, ...] | None:
    """Check the frequencies of the classes against a network that has `classes`."""
    given = config.class_frequencies
    if given is not None and (len(given) != classes or not sum(given)):
        raise UserError(
            f"class_frequencies has {len(given)} numbers, the teacher {classes} classes: one "
            "number a class is needed, not all 0"
        )
    return given


def _check_augmentation(config: SidConfig, teacher: Denoiser) -> None:
    if config.augment and teacher.config.augment_dim != AUGMENT_DIM:
        raise UserError(
            f"augment is {config.augment}, but this teacher was built with "
            f"{teacher.config.augment_dim or 'no'} augmentation labels instead of {AUGMENT_DIM}: "
            "say --augment 0"
        )


def _copy_from(start: Denoiser | None, teacher: Denoiser) -> Denoiser:
    """A copy of the teacher, with the weights of `start` if there is one."""
    network = copy.deepcopy(teacher)
    if start is not None:
        network.load_state_dict(start.state_dict())
    return network


def _with_dropout(teacher: Denoiser, dropout: float | None) -> Denoiser:
    """The same network with another probability of dropout."""
    if dropout is None or dropout == teacher.config.dropout:
        return teacher
    network = Denoiser(teacher.config.model_copy(update={"dropout": dropout}))
    network.load_state_dict(teacher.state_dict())
    return network
