"""A generator's warm start: one step learns what the teacher makes of each noise in many.

Regression on noise-image pairs (knowledge distillation, arXiv 2101.02388). Alone it draws blurred
pictures, but it keeps the teacher's whole variety, from which SiD then starts
(docs/results/avatars.md).
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from distill.checkpoints import sha256_of_weights
from distill.methods.losses import regression_loss
from distill.methods.pairs import Pairs
from distill.methods.teacher import learning_rate
from distill.networks import Denoiser
from distill.recipe import RegressionConfig
from distill.sampling import one_step, sample_inputs
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


class RegressionTraining:
    """A generator learning its teacher's pairs; see `distill.training.loop.Training`.

    Args:
        teacher: whose weights the generator starts from.
        pairs: what that teacher drew.
    """

    def __init__(
        self, teacher: Denoiser, pairs: Pairs, config: RegressionConfig, world: World
    ) -> None:
        self.config, self.pairs, self.world = config, pairs, world
        self.microbatches = share_of_batch(config, world)
        self._identity = {"teacher": sha256_of_weights(teacher), "pairs": len(pairs)}
        generator = channels_last(copy.deepcopy(teacher).to(world.building_site))
        generator.requires_grad_(True).compute_dtype = compute_dtype(config.precision, world.device)
        self.ema = world.fixed(copy.deepcopy(generator).eval().requires_grad_(False))
        self.learner = Learner(generator.train(), world, config.betas, config.eps)

    @property
    def learners(self) -> dict[str, Learner]:
        """The network that learns, by name."""
        return {"generator": self.learner}

    def identity(self) -> dict[str, Any]:
        """The teacher, by its weights, and how many pairs it drew."""
        return self._identity

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One Adam step on the distance to the teacher's images, and one of the average."""
        config = self.config
        losses = [partial(self._loss, images_seen, i) for i in self.microbatches]
        logged, norm = self.learner.descend(losses, learning_rate(config, images_seen))
        beta = ema_beta(config.batch, config.ema_halflife, images_seen)
        update_ema(self.ema, self.learner.network, beta)
        return logged | {"gradient/generator": norm}

    def _loss(self, images_seen: int, microbatch: int) -> Loss:
        config, device = self.config, self.world.device
        seed_draws(config.seed, images_seen, 0, microbatch)
        z, labels, images = self.pairs.batch(
            torch.randint(len(self.pairs), (config.images_a_call,))
        )
        z = z.to(device, memory_format=torch.channels_last)
        labels = None if labels is None else labels.to(device)
        augmentation = None
        if width := self.ema.config.augment_dim:  # every weight has a gradient to exchange
            augmentation = torch.zeros(len(z), width, device=device)
        drawn = one_step(self.learner.call, z, labels, config.sigma_init, augmentation)
        loss = regression_loss(drawn, images.to(device, memory_format=torch.channels_last))
        left_out = nonfinite_samples(loss)
        total = sum_without(left_out, loss, drawn) / config.batch
        return Loss(total, share(left_out), {"loss/regression": mean_without(left_out, loss)})

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

    @torch.no_grad()
    def samples(self, count: int | None = None) -> Tensor:
        """Ten pictures a class (a hundred without classes) or the first of them, in one step."""
        latents, labels = sample_inputs(self.ema.config, self.world.device, count)
        return one_step(self.ema, latents, labels, self.config.sigma_init)
