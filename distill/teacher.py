"""Training a diffusion teacher from images (EDM, arXiv 2206.00364)."""

import copy
import math
from typing import Any

import torch
from torch import Tensor

from distill.data import Dataset
from distill.images import to_pixels
from distill.losses import fake_score_loss
from distill.networks import Denoiser, NetworkConfig
from distill.recipe import TeacherConfig
from distill.sampling import heun, sample_inputs
from distill.schedules import training_sigmas
from distill.training import channels_last, clean_gradients, ema_beta, update_ema


class TeacherTraining:
    """A denoiser learning the images of a data set; see `distill.training.Training`."""

    def __init__(
        self, network: NetworkConfig, config: TeacherConfig, dataset: Dataset, device: torch.device
    ) -> None:
        self.config, self.dataset, self.device = config, dataset, device
        torch.manual_seed(config.seed)
        self.network = channels_last(Denoiser(network).to(device))
        self.ema = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=config.lr, betas=config.betas, fused=True
        )

    def identity(self) -> dict[str, Any]:
        """The network's shape and the data set."""
        return {"network": self.ema.config.model_dump(mode="json"), "data": self.dataset.digest()}

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One Adam step on EDM's denoising loss, and one of the average."""
        config = self.config
        self.network.train()
        images, labels = self.dataset.batch(torch.randint(len(self.dataset), (config.batch,)))
        images = images.to(self.device, memory_format=torch.channels_last)
        labels = None if labels is None else labels.to(self.device)
        sigma = training_sigmas(torch.randn(len(images), 1, 1, 1, device=self.device))
        noisy = images + sigma * torch.randn_like(images)
        loss = fake_score_loss(images, self.network(noisy, sigma, labels), sigma)
        loss = loss.sum() / config.batch

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, images_seen)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        clean_gradients(self.network)
        self.optimizer.step()
        update_ema(self.ema, self.network, ema_beta(config.batch, config.ema_halflife, images_seen))
        return {"loss/teacher": loss.detach() / images[0].numel()}

    def state(self) -> dict[str, Any]:
        """Weights, average and Adam's moments."""
        return {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        self.network.load_state_dict(state["network"])
        self.ema.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])

    def samples(self) -> Tensor:
        """Ten pictures a class (a hundred without classes) by the 35-evaluation sampler."""
        latents, labels = sample_inputs(self.ema.config, self.device)
        return to_pixels(heun(self.ema, latents, labels))


def learning_rate(config: TeacherConfig, images_seen: int) -> float:
    """Linear rise over `warmup` images, then half a cosine down to 0 at `total_images`."""
    rise = min(1.0, (images_seen + config.batch) / max(config.warmup, 1))
    fall = (1 + math.cos(math.pi * min(1.0, images_seen / config.total_images))) / 2
    return config.lr * rise * fall
