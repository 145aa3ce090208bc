"""Training a diffusion teacher from images (EDM, arXiv 2206.00364)."""

import copy
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.data.augment import augment
from distill.data.datasets import Dataset
from distill.methods.losses import fake_score_loss
from distill.networks import Denoiser, NetworkConfig
from distill.networks.layers import use_winograd
from distill.recipe import TeacherConfig
from distill.sampling import heun, sample_inputs
from distill.schedules import training_sigmas
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
from distill.training.nonfinite import mean_without, nonfinite_samples, share, sum_without
from distill.training.precision import compute_dtype


class TeacherTraining:
    """A denoiser learning the images of a data set; see `distill.training.loop.Training`."""

    def __init__(
        self, network: NetworkConfig, config: TeacherConfig, dataset: Dataset, world: World
    ) -> None:
        self.config, self.dataset, self.world = config, dataset, world
        self.microbatches = share_of_batch(config, world)
        torch.manual_seed(config.seed)
        denoiser = channels_last(Denoiser(network).to(world.building_site))
        denoiser.compute_dtype = compute_dtype(config.precision, world.device)
        self.ema = world.fixed(copy.deepcopy(denoiser).eval().requires_grad_(False))
        if world.device.type == "cpu" and config.precision == "float32":
            use_winograd(denoiser)  # not the average, which draws the pictures and is distilled
        self.learner = Learner(denoiser.train(), world, config.betas, config.eps)

    @property
    def learners(self) -> dict[str, Learner]:
        """The network that learns, by name."""
        return {"teacher": self.learner}

    def identity(self) -> dict[str, Any]:
        """The network's shape and the data set."""
        return {"network": self.ema.config.model_dump(mode="json"), "data": self.dataset.digest()}

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One Adam step on EDM's denoising loss, and one of the average."""
        config = self.config
        losses = [partial(self._loss, images_seen, i) for i in self.microbatches]
        logged, norm = self.learner.descend(losses, learning_rate(config, images_seen))
        beta = ema_beta(config.batch, config.ema_halflife, images_seen)
        update_ema(self.ema, self.learner.network, beta)
        return logged | {"gradient/teacher": norm}

    def _loss(self, images_seen: int, microbatch: int) -> Loss:
        config, device = self.config, self.world.device
        seed_draws(config.seed, images_seen, 0, microbatch)
        picked = torch.randint(len(self.dataset), (config.images_a_call,))
        images, labels = self.dataset.batch(picked)
        images = images.to(device, memory_format=torch.channels_last)
        labels = None if labels is None else labels.to(device)
        augmentation = None
        if config.augment:
            images, augmentation = augment(images, config.augment)
        normal = torch.randn(len(images), 1, 1, 1, device=device)
        sigma = training_sigmas(normal, config.noise_mean, config.noise_std)
        noisy = images + sigma * torch.randn_like(images)
        denoised = self.learner.call(noisy, sigma, labels, augmentation)
        loss = fake_score_loss(images, denoised, sigma)
        left_out = nonfinite_samples(loss)
        total = sum_without(left_out, loss, denoised) / config.batch
        return Loss(total, share(left_out), {"loss/teacher": mean_without(left_out, loss)})

    def state(self) -> dict[str, Any]:
        """Weights, average and Adam's moments; every process must ask."""
        return {
            "network": whole_weights(self.learner.network),
            "ema": whole_weights(self.ema),
            "optimizer": self.learner.optimizer_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        load_weights(self.learner.network, state["network"])
        load_weights(self.ema, state["ema"])
        self.learner.load_optimizer_state(state["optimizer"])

    def samples(self, count: int | None = None) -> Tensor:
        """Ten pictures a class (a hundred without classes) or the first of them, in 35 calls."""
        latents, labels = sample_inputs(self.ema.config, self.world.device, count)
        return heun(self.ema, latents, labels)


def learning_rate(config: TeacherConfig, images_seen: int) -> float:
    """Linear rise over `warmup` images, then half a cosine down to 0 at `total_images`."""
    rise = min(1.0, (images_seen + config.batch) / max(config.warmup, 1))
    fall = (1 + math.cos(math.pi * min(1.0, images_seen / config.total_images))) / 2
    return config.lr * rise * fall
