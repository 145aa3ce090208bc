"""The training of one network and its average, whatever it learns."""

import copy
import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Any

from torch import Tensor

from distill.networks import Denoiser
from distill.training.cuda_graph import step_graphs
from distill.training.distributed import DistributedContext
from distill.training.form_choice import CompileChoice, choose_form
from distill.training.learner import Learner, Loss, ema_beta, full_state_dict, load_weights
from distill.training.microbatches import local_microbatches, seed_rng
from distill.training.network_form import compile_blocks
from distill.training.phase import Phase
from distill.training.prepare import prepared
from distill.training_config import SingleNetworkConfig


class SingleNetworkTraining(ABC):
    """One network learns, by the `loss` of a subclass; see `distill.training.protocol.Training`.

    Args:
        name: what people call the network.
        network: with its first weights; it is trained in place.
        config: how.
        context: this process among those of the run.
        compile_choice: which form the network may have, see `distill.training.form_choice`.

    Attributes:
        learner: the network, with its optimiser.
        ema: its running average, which is what gets kept.
        graphs: what captures and replays the steps; None where they are eager.
        end: images after which it ends: `config.total_images`.

    Raises:
        UserError: the configuration does not suit the device or the processes.
    """

    def __init__(
        self,
        name: str,
        network: Denoiser,
        config: SingleNetworkConfig,
        context: DistributedContext,
        compile_choice: CompileChoice = "auto",
    ) -> None:
        self.name, self.config, self.context = name, config, context
        self.end = config.total_images
        self.microbatches = local_microbatches(config, context)
        form = choose_form(compile_choice, network, config, context)
        network = prepared(network, config.precision, context, form).requires_grad_(True)
        self.ema = context.prepare_frozen(copy.deepcopy(network).eval().requires_grad_(False))
        scaled = config.precision == "float16"
        self.learner = Learner(network.train(), context, config.betas, config.eps, scaled)
        if form == "compiled":
            compile_blocks(network)
        self.graphs = step_graphs(context)
        count = len(self.microbatches)
        self._phase = Phase(self.learner, self.loss, count, [network], average=self.ema)

    @property
    def learners(self) -> dict[str, Learner]:
        """The network that learns, by name."""
        return {self.name: self.learner}

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a resumed run must share besides its configuration, as JSON values."""

    def load_inputs(self) -> None:  # noqa: B027
        """Bring what `loss` needs of the host to the device, into memory that stays the same.

        It is called before each `loss`, when torch's random streams are seeded for that
        micro-batch, and waits for nothing on the device. Here it does nothing.
        """

    @abstractmethod
    def loss(self) -> Loss:
        """What the network descends, over one micro-batch: its share of the batch's loss.

        torch's random streams are seeded for that micro-batch, and its inputs are loaded. It
        computes on the device alone.
        """

    @abstractmethod
    def samples(self, count: int | None = None) -> Tensor:
        """Draw the average's fixed grid of images, or the first `count` of it."""

    def step(self, images_seen: int) -> dict[str, Tensor]:
        """One Adam step on the loss, and one of the average.

        Returns:
            What the loss logs, and the norm of the gradient.
        """
        config = self.config
        logged, norm = self._phase.run(
            self.graphs,
            [partial(self._prepare, images_seen, number) for number in self.microbatches],
            learning_rate(config, images_seen),
            ema_beta(config.batch, config.ema_halflife, images_seen),
        )
        return logged | {f"gradient/{self.name}": norm}

    def _prepare(self, images_seen: int, microbatch: int) -> None:
        seed_rng(self.config.seed, images_seen, 0, microbatch)
        self.load_inputs()

    def state(self) -> dict[str, Any]:
        """Weights, average and Adam's moments; every process must ask."""
        return {
            "network": full_state_dict(self.learner.network),
            "ema": full_state_dict(self.ema),
            "optimizer": self.learner.optimizer_state(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state()`."""
        load_weights(self.learner.network, state["network"])
        load_weights(self.ema, state["ema"])
        self.learner.load_optimizer_state(state["optimizer"])


def learning_rate(config: SingleNetworkConfig, images_seen: int) -> float:
    """Linear rise over `warmup` images, then half a cosine down to 0 at `total_images`.

    With `decay_after` the rate is constant up to so many images instead, and then falls as one
    over the root of the images seen.
    """
    rise = min(1.0, (images_seen + config.batch) / max(config.warmup, 1))
    if config.decay_after is not None:
        return config.lr * rise / math.sqrt(max(images_seen / config.decay_after, 1))
    fall = (1 + math.cos(math.pi * min(1.0, images_seen / config.total_images))) / 2
    return config.lr * rise * fall
