"""One iteration of Score identity Distillation, written down as the algorithm reads.

A plain transcription of facts/sid.md, section 2 (arXiv 2404.04057, algorithm 1; the noise levels
of EDM, arXiv 2206.00364): eager float32, torch.optim.Adam as it comes, the average by a Python
loop, no tricks. It shares the network's class and nothing else with `distill.methods.sid`, and
serves twice: as the baseline of training_speed.py, and as the oracle of tests/distill/methods/
test_transcription.py, which hands it the same random draws.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.networks import Denoiser

SIGMA_DATA = 0.5
FAKE_SCORE_PHASE, GENERATOR_PHASE = 0, 1


@dataclass(frozen=True)
class Settings:
    """The numbers of a run, by the facts' names.

    Attributes:
        batch: images a step.
        microbatch: images a network call; gradients add up over batch / microbatch calls.
        lr: of both networks.
        alpha: weight of the squared difference of the scores.
        betas: Adam's.
        eps: Adam's.
        sigma_init: noise level at which the generator denoises pure noise.
        t_max: end of the noise levels compared, of 1000.
        loss_scale: factor on the generator's loss.
        ema_halflife: in images.
    """

    batch: int
    microbatch: int
    lr: float = 1e-5
    alpha: float = 1.2
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8
    sigma_init: float = 2.5
    t_max: float = 800
    loss_scale: float = 100
    ema_halflife: float = 500_000


class Draws:
    """Where the random numbers come from: torch's stream, wherever it stands."""

    def begin(self, images_seen: int, phase: int, microbatch: int) -> None:
        """Note that a micro-batch begins."""

    def latents(self, shape: tuple[int, int, int, int]) -> Tensor:
        """z ~ N(0, I)."""
        return torch.randn(shape)

    def classes(self, count: int, classes: int) -> Tensor:
        """Class numbers [count], all classes alike."""
        return torch.randint(classes, (count,))

    def normal(self, count: int) -> Tensor:
        """One standard normal number an image: [count, 1, 1, 1]."""
        return torch.randn(count, 1, 1, 1)

    def uniform(self, count: int) -> Tensor:
        """One number in [0, 1] an image: [count, 1, 1, 1]."""
        return torch.rand(count, 1, 1, 1)

    def noise(self, images: Tensor) -> Tensor:
        """Eps ~ N(0, I), shaped like images [N, C, H, W]."""
        return torch.randn(images.shape)


Augment = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def as_they_are(images: Tensor) -> tuple[Tensor, None]:
    """No augmentation."""
    return images, None


class Transcription:
    """The distillation of one teacher.

    Attributes:
        phi: the teacher, frozen.
        psi: the fake score.
        theta: the generator.
        ema: the average of theta.
    """

    def __init__(
        self,
        teacher: Denoiser,
        settings: Settings,
        draws: Draws | None = None,
        augment: Augment = as_they_are,
    ) -> None:
        self.settings, self.draws, self.augment = settings, draws or Draws(), augment
        self.phi = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.psi = copy.deepcopy(teacher)
        self.theta = copy.deepcopy(teacher)
        self.ema = copy.deepcopy(teacher).eval().requires_grad_(False)
        adam = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
        self.psi_adam = torch.optim.Adam(self.psi.parameters(), **adam)
        self.theta_adam = torch.optim.Adam(self.theta.parameters(), **adam)

    def step(self, images_seen: int) -> tuple[float, float, float]:
        """Take a step of psi, of theta, and of the average.

        Returns:
            The mean over elements of L_psi, of L_theta, and of the score gap (a - b)^2 / w.
        """
        count = self.settings.batch // self.settings.microbatch
        fake_losses, losses, gaps = [], [], []

        self.theta.eval().requires_grad_(False)
        self.psi.train().requires_grad_(True)
        self.psi_adam.zero_grad()
        for number in range(count):
            self.draws.begin(images_seen, FAKE_SCORE_PHASE, number)
            fake_loss, good = self.fake_score_loss()
            (fake_loss[good].sum() / self.settings.batch).backward()
            fake_losses.append(fake_loss.detach().mean())
        clean_gradients(self.psi)
        self.psi_adam.step()

        self.theta.train().requires_grad_(True)
        self.psi.eval().requires_grad_(False)
        self.theta_adam.zero_grad()
        for number in range(count):
            self.draws.begin(images_seen, GENERATOR_PHASE, number)
            loss, gap, good = self.generator_loss()
            (loss[good].sum() * self.settings.loss_scale / self.settings.batch).backward()
            losses.append(loss.detach().mean())
            gaps.append(gap.mean())
        clean_gradients(self.theta)
        self.theta_adam.step()

        self.update_ema(images_seen)
        return (
            torch.stack(fake_losses).mean().item(),
            torch.stack(losses).mean().item(),
            torch.stack(gaps).mean().item(),
        )

    def fake_score_loss(self) -> tuple[Tensor, Tensor]:
        """L_psi an element [N, C, H, W], and which samples count [N]."""
        z, c = self.draw_inputs()
        with torch.no_grad():
            x = self.generate(z, c)
        x, augment_labels = self.augment(x)
        sigma = torch.exp(1.2 * self.draws.normal(len(x)) - 1.2)
        weight = (sigma**2 + SIGMA_DATA**2) / (sigma * SIGMA_DATA) ** 2
        denoised = self.psi(x + sigma * self.draws.noise(x), sigma, c, augment_labels)
        return weight * (denoised - x) ** 2, without_nan(x)

    def generator_loss(self) -> tuple[Tensor, Tensor, Tensor]:
        """L_theta and the score gap an element [N, C, H, W], and which samples count [N]."""
        z, c = self.draw_inputs()
        x = self.generate(z, c)
        u = self.draws.uniform(len(x)) * self.settings.t_max / 1000
        top, bottom = 80 ** (1 / 7), 0.002 ** (1 / 7)
        sigma = (top + (1 - u) * (bottom - top)) ** 7
        y = x + sigma * self.draws.noise(x)
        a, b = self.phi(y, sigma, c), self.psi(y, sigma, c)
        w = (x - a).detach().abs().mean(dim=(1, 2, 3), keepdim=True).clamp(min=1e-5)
        loss = (a - b) * ((a - x) - self.settings.alpha * (a - b)) / w
        gap = (a - b).detach() ** 2 / w
        return loss, gap, without_nan(x) & without_nan(a) & without_nan(b)

    def draw_inputs(self) -> tuple[Tensor, Tensor | None]:
        """Fresh z, and one-hot labels where the network has classes."""
        network, count = self.phi.config, self.settings.microbatch
        z = self.draws.latents((count, *network.latent_shape))
        if not network.label_dim:
            return z, None
        return z, torch.eye(network.label_dim)[self.draws.classes(count, network.label_dim)]

    def generate(self, z: Tensor, c: Tensor | None) -> Tensor:
        """G(z, c) = D_theta(sigma_init z; sigma_init, c)."""
        sigma = torch.full((len(z),), self.settings.sigma_init)
        return self.theta(self.settings.sigma_init * z, sigma, c)

    @torch.no_grad()
    def update_ema(self, images_seen: int) -> None:
        """Move the average towards theta, parameter by parameter."""
        halflife = max(min(self.settings.ema_halflife, 0.05 * images_seen), 1e-8)
        beta = 0.5 ** (self.settings.batch / halflife)
        for average, new in zip(self.ema.parameters(), self.theta.parameters(), strict=True):
            average.copy_(beta * average + (1 - beta) * new)


def clean_gradients(network: Denoiser) -> None:
    """NaN becomes 0, an infinity +-1e5."""
    for parameter in network.parameters():
        if parameter.grad is not None:
            parameter.grad.nan_to_num_(nan=0, posinf=1e5, neginf=-1e5)


def without_nan(images: Tensor) -> Tensor:
    """Which of [N, C, H, W] hold no NaN: bool [N]."""
    return ~images.detach().isnan().flatten(1).any(dim=1)
