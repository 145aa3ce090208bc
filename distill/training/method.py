"""What tells one distillation from another: its losses, and what they are given.

`distill.training.distillation` knows three networks and two optimisers, but no loss. A method
(one file in distill/methods/) knows its losses, and is handed the networks of one half of a step.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from distill.data.augment import augment
from distill.data.datasets import one_hot
from distill.data.latents import TrainingData
from distill.errors import UserError
from distill.networks import Denoiser
from distill.sampling import step_mixture
from distill.training.examples import Examples
from distill.training.learner import Loss
from distill.training_config import DistillationConfig


class RealImages(NamedTuple):
    """A micro-batch of a data set.

    Attributes:
        images: float32 [N, C, H, W] in [-1, 1].
        labels: one-hot [N, classes]; None: no classes.
    """

    images: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class HalfStep:
    """Half of a step as a method sees it: the networks, in the modes of this half, and inputs.

    The networks are called as a `Denoiser` is. torch's random streams are seeded anew for each
    micro-batch, so the order of a method's draws is part of the method.

    Attributes:
        teacher: phi, in eval mode; it never learns.
        fake_score: psi. In its own half in train mode, and gradients reach its weights; in the
            generator's in eval mode and frozen.
        generator: theta. In its own half in train mode, and gradients reach its weights; in the
            fake score's in eval mode and frozen.
        config: how many images a micro-batch has, and what else is set.
        device: where all of them compute.
        cumulated_frequencies: how often a class up to each is drawn, float64 [classes], the last
            1; None: all alike.
        examples: the data set of a method that needs real images, see `real`; None: there is none.
        dataset: what the examples are of.
    """

    teacher: Denoiser
    fake_score: Callable[..., Tensor]
    generator: Callable[..., Tensor]
    config: DistillationConfig
    device: torch.device
    cumulated_frequencies: Tensor | None
    examples: Examples | None = None
    dataset: TrainingData | None = None

    @property
    def real(self) -> RealImages:
        """Real images of this micro-batch, drawn at random: those of a method that needs them.

        Of a data set of latents they are drawn from these at each call, by torch's random stream.
        They are there in the fake score's half alone.

        Raises:
            ValueError: there are none.
        """
        if self.examples is None or self.dataset is None:
            raise ValueError(
                "no real images here: `needs_images`, and the fake score's half, alone"
            )
        rows, classes = self.examples.batch
        count = self.teacher.config.label_dim
        images = self.dataset.to_images(rows)
        return RealImages(images, one_hot(classes, count) if count else None)

    def draw_latents(self) -> Tensor:
        """Fresh latents of one micro-batch [N, C, H, W]."""
        shape = (self.config.images_per_call, *self.teacher.config.latent_shape)
        latents = torch.randn(shape, device=self.device)
        return latents.contiguous(memory_format=torch.channels_last)

    def draw_inputs(self) -> tuple[Tensor, Tensor | None]:
        """Fresh latents of one micro-batch [N, C, H, W], and one-hot labels (None: no classes)."""
        network, count = self.teacher.config, self.config.images_per_call
        latents = self.draw_latents()
        if not network.label_dim:
            return latents, None
        if self.cumulated_frequencies is None:
            labels = torch.randint(network.label_dim, (count,), device=self.device)
        else:  # torch.multinomial may wait for a CUDA card to check its frequencies
            u = torch.rand(count, dtype=torch.float64, device=self.device)
            labels = torch.searchsorted(self.cumulated_frequencies, u, right=True)
        return latents, one_hot(labels, network.label_dim)

    def generate(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """The generator's images of these inputs, float32 [N, C, H, W].

        Of a generator of K steps image i is the one after i mod K + 1 of them, and gradients reach
        the generator through the last (`distill.sampling.step_mixture`).
        """
        config, augmentation = self.config, self._no_augmentation(len(latents))
        return step_mixture(
            self.generator, latents, labels, config.sigma_init, config.steps, config.renoise,
            augmentation,
        )  # fmt: skip

    def augment(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Augment images as `config.augment` says; also return the labels that tell psi how."""
        if self.config.augment:
            return augment(images, self.config.augment)
        return images, self._no_augmentation(len(images))

    def _no_augmentation(self, count: int) -> Tensor | None:
        """Zeros, so that every weight has a gradient for the processes to exchange."""
        width = self.teacher.config.augment_dim
        return torch.zeros(count, width, device=self.device) if width else None


class Method(ABC):
    """A method of distillation: two losses, and the section of a recipe that sets them.

    Attributes:
        name: what people call it: the name of its section in a recipe.
        section: what that section may hold.
        config: the section of this run.
        needs_images: whether it learns from real images too, see `HalfStep.real`.
        holds_fake_score: whether weights of the fake score that a family wants held at unit rows
            (`RawNetwork.unit_weights`) are; the generator's are in any case.
        gradient_clip: each element of the fake score's gradient is cut to this much either way;
            None: it is left as it is.
    """

    name: ClassVar[str]
    section: ClassVar[type[DistillationConfig]]
    needs_images: bool = False
    holds_fake_score: bool = True
    gradient_clip: float | None = None

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config

    def check(self, teacher: Denoiser, dataset: TrainingData | None) -> None:
        """See whether it can distil a teacher, with these real images or without any.

        Raises:
            UserError: it cannot.
        """
        if not self.needs_images:
            return
        if dataset is None:
            raise UserError(
                f"{self.name} learns from real images too, and there are none: name them, or take "
                "a method that needs the teacher alone, such as sid"
            )
        network = teacher.config
        shape = dataset.shape
        if shape != network.latent_shape:
            raise UserError(
                f"the images of {dataset.name} have {_shape(shape)}, those of the teacher "
                f"{_shape(network.latent_shape)}: {self.name} needs images like those that the "
                "teacher learned from"
            )
        if len(dataset.classes) != network.label_dim:
            raise UserError(
                f"the images of {dataset.name} have {len(dataset.classes) or 'no'} classes, the "
                f"teacher {network.label_dim or 'none'}: {self.name} needs images of its classes"
            )

    def begin_step(self, images_seen: int, device: torch.device) -> None:  # noqa: B027
        """Set what a schedule changes from step to step, before any loss of this step.

        The losses may be captured as CUDA graphs, which keep Python's numbers as they were. So
        such a number is a tensor on `device`, made at the first call and filled at each.
        """

    def generator_rests(self, images_seen: int) -> bool:  # noqa: ARG002
        """Whether the generator's half is left out of this step: neither it nor its average moves.

        The host knows it from the images seen alone.
        """
        return False

    @abstractmethod
    def fake_score_loss(self, half: HalfStep) -> Loss:
        """What the fake score descends, over one micro-batch: its share of the batch's loss."""

    @abstractmethod
    def generator_loss(self, half: HalfStep) -> Loss:
        """What the generator descends, over one micro-batch: its share of the batch's loss."""


def _shape(shape: tuple[int, ...]) -> str:
    channels, height, width = shape
    return f"{width}x{height} pixels and {channels} channel{'s' if channels > 1 else ''}"
