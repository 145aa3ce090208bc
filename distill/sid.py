"""Score identity Distillation: a teacher becomes a one-step generator, without data.

arXiv 2404.04057, algorithm 1. Three networks of one architecture, all starting from the
teacher's weights: phi (the teacher, frozen), psi (the fake score: a denoiser of the
generator's own images) and theta (the generator). They alternate, one step each.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from distill.checkpoints import sha256_of_weights
from distill.data import one_hot
from distill.images import to_pixels
from distill.losses import fake_score_loss, generator_loss, sample_weight
from distill.networks import Denoiser
from distill.recipe import SidConfig
from distill.sampling import one_step, sample_inputs
from distill.schedules import generator_sigmas, training_sigmas
from distill.training import channels_last, clean_gradients, ema_beta, update_ema


class SidTraining:
    """The distillation of one teacher; see `distill.training.Training`.

    Attributes:
        teacher: phi, in eval mode, its weights frozen.
        fake_score: psi, trained in its own step, frozen in the generator's.
        generator: theta.
        ema: the running average of theta, which is what gets exported.
    """

    def __init__(self, teacher: Denoiser, config: SidConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.teacher = channels_last(teacher.to(device)).eval().requires_grad_(False)
        self.fake_score = copy.deepcopy(self.teacher)
        self.generator = copy.deepcopy(self.teacher)
        self.ema = copy.deepcopy(self.teacher)
        self.fake_optimizer = self._adam(self.fake_score, config.fake_lr or config.lr)
        self.generator_optimizer = self._adam(self.generator, config.lr)

    def _adam(self, network: Denoiser, lr: float) -> torch.optim.Adam:
        parameters = [{"params": list(network.parameters()), "initial_lr": lr}]
        return torch.optim.Adam(parameters, lr=lr, betas=self.config.betas, fused=True)

    def identity(self) -> dict[str, Any]:
        """The teacher, by its weights."""
        return {"teacher": sha256_of_weights(self.teacher)}

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One step of psi, one of theta, one of the average; `batch` images are counted."""
        share = learning_rate_share(self.config, images_seen)
        for optimizer in (self.fake_optimizer, self.generator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share
        scalars = self._fake_score_step() | self._generator_step()
        beta = ema_beta(self.config.batch, self.config.ema_halflife, images_seen)
        update_ema(self.ema, self.generator, beta)
        return scalars

    def _fake_score_step(self) -> dict[str, Tensor]:
        """Teach psi to denoise the generator's images (SiD equation 22)."""
        self.generator.eval().requires_grad_(False)
        self.fake_score.train().requires_grad_(True)
        latents, labels = self._draw_inputs()
        with torch.no_grad():
            images = one_step(self.generator, latents, labels, self.config.sigma_init)
        sigma = training_sigmas(torch.randn(len(images), 1, 1, 1, device=self.device))
        denoised = self.fake_score(images + sigma * torch.randn_like(images), sigma, labels)
        loss = fake_score_loss(images, denoised, sigma)
        loss = drop_nan_samples(loss, images)
        self._descend(self.fake_score, self.fake_optimizer, loss, self.config.fake_loss_scale)
        return {"loss/fake_score": loss.detach().mean()}

    def _generator_step(self) -> dict[str, Tensor]:
        """Move theta so that psi's score meets phi's (SiD equations 20, 23, 24)."""
        self.generator.train().requires_grad_(True)
        self.fake_score.eval().requires_grad_(False)
        latents, labels = self._draw_inputs()
        images = one_step(self.generator, latents, labels, self.config.sigma_init)
        u = torch.rand(len(images), 1, 1, 1, device=self.device)
        sigma = generator_sigmas(u, self.config.t_max)
        noisy = images + sigma * torch.randn_like(images)
        teacher = self.teacher(noisy, sigma, labels)
        fake = self.fake_score(noisy, sigma, labels)
        loss = generator_loss(images, teacher, fake, self.config.alpha, self.config.weighting)
        loss = drop_nan_samples(loss, images, teacher, fake)
        scale = self.config.generator_loss_scale
        self._descend(self.generator, self.generator_optimizer, loss, scale)
        gap = (teacher - fake).detach() ** 2 / sample_weight(images, teacher)
        return {"loss/generator": loss.detach().mean(), "score gap": gap.mean()}

    def _descend(
        self, network: Denoiser, optimizer: torch.optim.Adam, loss: Tensor, scale: float
    ) -> None:
        """One Adam step on the sum of the elements times scale / batch."""
        optimizer.zero_grad(set_to_none=True)
        (loss.sum() * (scale / self.config.batch)).backward()
        clean_gradients(network)
        optimizer.step()

    def _draw_inputs(self) -> tuple[Tensor, Tensor | None]:
        """Fresh latents, and one-hot labels drawn uniformly (None without classes)."""
        network, batch = self.teacher.config, self.config.batch
        shape = (batch, network.img_channels, network.img_resolution, network.img_resolution)
        latents = torch.randn(shape, device=self.device)
        latents = latents.contiguous(memory_format=torch.channels_last)
        if not network.label_dim:
            return latents, None
        labels = torch.randint(network.label_dim, (batch,), device=self.device)
        return latents, one_hot(labels, network.label_dim)

    def state(self) -> dict[str, Any]:
        """Weights of psi, theta and its average, and Adam's moments."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict[str, Any]:
        names = ("fake_score", "generator", "ema", "fake_optimizer", "generator_optimizer")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def samples(self) -> Tensor:
        """Ten pictures a class (a hundred without classes), each in one step."""
        latents, labels = sample_inputs(self.ema.config, self.device)
        return to_pixels(one_step(self.ema, latents, labels, self.config.sigma_init))


def learning_rate_share(config: SidConfig, images_seen: int) -> float:
    """1, then a line down to 0 over the last `cooldown` images of the run."""
    if not config.cooldown:
        return 1.0
    return min(1.0, max(0.0, (config.total_images - images_seen) / config.cooldown))


def drop_nan_samples(loss: Tensor, *parts: Tensor) -> Tensor:
    """Keep the rows of `loss` for which no part [N, ...] holds a NaN."""
    bad = torch.stack([part.detach().flatten(1).isnan().any(dim=1) for part in parts])
    return loss[~bad.any(dim=0)]
