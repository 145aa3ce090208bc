"""What the loop of a training drives."""

from typing import Any, Protocol

from torch import Tensor

from distill.networks import Denoiser
from distill.training.distributed import DistributedContext
from distill.training.learner import Learner
from distill.training_config import LoopConfig


class Training(Protocol):
    """What the loop drives: a teacher's training or a distillation."""

    ema: Denoiser
    context: DistributedContext
    end: int  # images after which it ends: `config.total_images`, or fewer by an EarlyEnd

    @property
    def config(self) -> LoopConfig:
        """How long, how fast, in what batches."""

    @property
    def learners(self) -> dict[str, Learner]:
        """The networks that learn, by what people call them."""

    def identity(self) -> dict[str, Any]:
        """Return what a resumed run must share besides its configuration, as JSON values."""

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """Take one optimiser step; return scalars to log, of this process's share."""

    def state(self) -> dict[str, Any]:
        """Return all that a later `load_state` needs to go on to the bit."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""

    def samples(self, count: int | None = None) -> Tensor:
        """Draw a fixed grid of images with the averaged weights, or the first of it.

        Returns:
            float32 [rows*cols, C, H, W] in [-1, 1].
        """
