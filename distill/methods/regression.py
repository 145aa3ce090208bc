"""A generator's warm start: one step learns what the teacher makes of each noise in many.

Regression on noise-image pairs (knowledge distillation, arXiv 2101.02388). Alone it draws blurred
images, but it keeps the teacher's whole variety, from which SiD then starts
(docs/results/avatars.md).
"""

import copy
from typing import Any

import torch
from torch import Tensor

from distill.checkpoints import sha256_of_weights
from distill.data.images import from_pixels
from distill.methods.losses import regression_loss
from distill.methods.pairs import Pairs, pair_labels, pair_latents
from distill.networks import Denoiser
from distill.sampling import one_step, sample_inputs
from distill.training.distributed import DistributedContext
from distill.training.examples import Examples, send
from distill.training.form_choice import CompileChoice
from distill.training.learner import Loss
from distill.training.nonfinite import masked_mean, masked_sum, nonfinite_samples, share
from distill.training.single_network import SingleNetworkTraining
from distill.training_config import RegressionConfig


class RegressionTraining(SingleNetworkTraining):
    """A generator learning its teacher's pairs; see `distill.training.protocol.Training`.

    Args:
        teacher: whose weights the generator starts from.
        pairs: what that teacher drew.
    """

    config: RegressionConfig

    def __init__(
        self,
        teacher: Denoiser,
        pairs: Pairs,
        config: RegressionConfig,
        context: DistributedContext,
        compile_choice: CompileChoice = "auto",
    ) -> None:
        self.pairs = pairs
        self._identity = {"teacher": sha256_of_weights(teacher), "pairs": len(pairs)}
        generator = copy.deepcopy(teacher)
        generator.strip()
        super().__init__("generator", generator, config, context, compile_choice)
        count, device = config.images_per_call, context.device
        self.examples = Examples([pairs.images, torch.arange(len(pairs))], count, device)
        self.latents = torch.empty(count, *pairs.network.latent_shape, device=device)

    def identity(self) -> dict[str, Any]:
        """The teacher, by its weights, and how many pairs it drew."""
        return self._identity

    def load_inputs(self) -> None:
        """Pick pairs at random, by the host's stream, and draw their noises there."""
        picked = torch.randint(len(self.pairs), (self.config.images_per_call,))
        self.examples.load(picked)
        send(pair_latents(self.pairs.network, self.pairs.seed, picked.tolist()), self.latents)

    def loss(self) -> Loss:
        """The distance to the teacher's images."""
        config = self.config
        pixels, numbers = self.examples.batch
        z = self.latents.contiguous(memory_format=torch.channels_last)
        labels = pair_labels(self.pairs.network, numbers)
        augmentation = None
        if width := self.ema.config.augment_dim:  # every weight has a gradient to exchange
            augmentation = torch.zeros(len(z), width, device=z.device)
        drawn = one_step(self.learner.call, z, labels, config.sigma_init, augmentation)
        loss = regression_loss(drawn, from_pixels(pixels))
        left_out = nonfinite_samples(loss)
        total = masked_sum(left_out, loss, drawn) / config.batch
        return Loss(total, share(left_out), {"loss/regression": masked_mean(left_out, loss)})

    @torch.no_grad()
    def samples(self, count: int | None = None) -> Tensor:
        """Ten images per class (a hundred without classes) or the first of them, in one step."""
        latents, labels = sample_inputs(self.ema.config, self.context.device, count)
        return one_step(self.ema, latents, labels, self.config.sigma_init)
