"""Training a diffusion teacher from images (EDM, arXiv 2206.00364)."""

from typing import Any

import torch
from torch import Tensor

from distill.data.augment import augment
from distill.data.datasets import one_hot
from distill.data.latents import TrainingData
from distill.methods.losses import fake_score_loss
from distill.methods.uncertainty import denoised_with_uncertainty, weighed_denoising_loss
from distill.networks import Denoiser, NetworkLayout
from distill.sampling import heun, sample_inputs
from distill.schedules import training_sigmas
from distill.training.distributed import DistributedContext
from distill.training.examples import Examples
from distill.training.form_choice import CompileChoice
from distill.training.learner import Loss
from distill.training.nonfinite import masked_mean, masked_sum, nonfinite_samples, share
from distill.training.single_network import SingleNetworkTraining
from distill.training_config import TeacherConfig


class TeacherTraining(SingleNetworkTraining):
    """A denoiser learning the images of a data set; see `distill.training.protocol.Training`."""

    def __init__(
        self,
        network: NetworkLayout,
        config: TeacherConfig,
        dataset: TrainingData,
        context: DistributedContext,
        compile_choice: CompileChoice = "auto",
    ) -> None:
        self.dataset = dataset
        torch.manual_seed(config.seed)
        super().__init__("teacher", Denoiser(network), config, context, compile_choice)
        tensors = [dataset.rows, dataset.labels]
        self.examples = Examples(tensors, config.images_per_call, context.device)

    def identity(self) -> dict[str, Any]:
        """The network's shape and the data set."""
        return {"network": self.ema.config.model_dump(mode="json"), "data": self.dataset.digest()}

    def load_inputs(self) -> None:
        """Pick images at random: by the host's stream, so alike on every device."""
        self.examples.load(torch.randint(len(self.dataset), (self.config.images_per_call,)))

    def loss(self) -> Loss:
        """The denoising loss of the network's preconditioning."""
        config, device = self.config, self.context.device
        rows, classes = self.examples.batch
        images = self.dataset.to_images(rows)
        labels = one_hot(classes, len(self.dataset.classes)) if self.dataset.classes else None
        augmentation = None
        if config.augment:
            images, augmentation = augment(images, config.augment)
        normal = torch.randn(len(images), 1, 1, 1, device=device)
        sigma = training_sigmas(normal, config.noise_mean, config.noise_std)
        noisy = images + sigma * torch.randn_like(images)
        inputs = (noisy, sigma, labels, augmentation)
        denoised, u = denoised_with_uncertainty(self.learner.call, self.ema.config, *inputs)
        loss = fake_score_loss(images, denoised, sigma, self.ema.config.preconditioning)
        loss = weighed_denoising_loss(loss, u)
        left_out = nonfinite_samples(loss)
        total = masked_sum(left_out, loss, denoised) / config.batch
        return Loss(total, share(left_out), {"loss/teacher": masked_mean(left_out, loss)})

    def samples(self, count: int | None = None) -> Tensor:
        """Ten images per class (a hundred without classes) or the first of them, in 35 calls."""
        latents, labels = sample_inputs(self.ema.config, self.context.device, count)
        return heun(self.ema, latents, labels)
