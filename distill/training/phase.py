"""A phase of a training step: one network learns from its micro-batches, then its average does.

What is done on the device (`compute`, `end`) is apart from what is done on the host (`run`), so
that it can be captured as CUDA graphs (`distill.training.cuda_graph`). It reads nothing back, and
every number that is another in the next step lies in a tensor that stays where it is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distill.networks import Denoiser
from distill.training.cuda_graph import StepGraphs, run_eagerly
from distill.training.learner import Learner, Loss, update_ema


class Phase:
    """One network's part of every step.

    Args:
        learner: the network that learns in it.
        loss: what it descends, over one micro-batch, whose random streams have been seeded and
            whose inputs have been loaded.
        microbatches: how many micro-batches this process has in a step.
        networks: all that `loss` calls.
        average: the running average of the network, if this phase updates it.
    """

    def __init__(
        self,
        learner: Learner,
        loss: Callable[[], Loss],
        microbatches: int,
        networks: Sequence[Denoiser],
        average: Denoiser | None = None,
    ) -> None:
        self.learner, self.average = learner, average
        self._loss, self._microbatches = loss, microbatches
        self._weights = [p for network in networks for p in network.parameters()]
        self._averages: list[Tensor] = [] if average is None else list(average.parameters())
        self._average_weight = torch.zeros((), device=learner.context.device)
        self._names: list[str] = []
        self._sums: Tensor | None = None  # of left_out and of what is logged, once it is known

    def run(
        self,
        graphs: StepGraphs | None,
        prepares: Sequence[Callable[[], None]],
        rate: float,
        ema_beta: float = 1.0,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Go through the phase once.

        Args:
            graphs: what captures and replays it; None: it is computed eagerly.
            prepares: make each micro-batch's random streams and inputs ready, on the host.
            rate: Adam's learning rate.
            ema_beta: what the average keeps of itself.

        Returns:
            The scalars' means over the micro-batches, and the gradient's norm.
        """
        self.learner.begin_step(rate)
        self._average_weight.fill_(1 - ema_beta)
        if self._sums is not None:
            self._sums.zero_()
        if graphs is None:
            run_eagerly(self, prepares)
        else:
            graphs.run(self, prepares)
        assert self._sums is not None
        means = (self._sums / self._microbatches).unbind()
        return dict(zip(self._names, means[1:], strict=True)), self.learner.norm.clone()

    def compute(self, last: bool) -> None:
        """Add one micro-batch's gradient to the others', and its scalars to theirs.

        Args:
            last: it is this process's last one: gradients are exchanged with the other processes.
        """
        with self.learner.gradient_sync(now=last):
            loss = self._loss()
            self.learner.backward(loss)
        scalars = torch.stack([loss.left_out, *loss.logged.values()]).detach()
        if self._sums is None:
            self._names, self._sums = list(loss.logged), torch.zeros_like(scalars)
        self._sums.add_(scalars)

    def end(self) -> None:
        """Take the step, let the average follow, and hold the weights that are to be held."""
        assert self._sums is not None
        left_out = self._sums[0] / self._microbatches
        self.learner.take_step(self.learner.context.average(left_out))
        if self.average is not None:
            update_ema(self.average, self.learner.network, self._average_weight)
        self.learner.hold_weights()

    def was_taken(self) -> bool:
        """Whether the last step was not skipped; waits for the device."""
        return not self.learner.skip.item()

    def changing(self) -> dict[str, list[Tensor]]:
        """Every tensor that `compute` and `end` change, by what it is."""
        assert self._sums is not None
        changing = self.learner.changing() | {"losses": [self._sums]}
        if self._averages:
            changing["average"] = self._averages
        return changing

    def reading(self) -> list[Tensor]:
        """The weights that `compute` reads, and the rates."""
        return [*self._weights, self.learner.rate, self._average_weight]
