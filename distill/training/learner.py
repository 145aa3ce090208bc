"""A network that learns: Adam, accumulated gradients, their exchange between processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from distill.networks import Denoiser
from distill.training.distributed import DistributedContext, local

# Weights as one process without sharding would hold them, whatever the number of processes.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class Loss(NamedTuple):
    """What to descend in one micro-batch: scalars.

    Attributes:
        total: the loss, summed over the samples and scaled.
        left_out: the share of samples that are not in it, see `distill.training.nonfinite`.
        logged: what else there is to show.
    """

    total: Tensor
    left_out: Tensor
    logged: dict[str, Tensor]


class Learner:
    """A network with its optimiser.

    Attributes:
        network: the bare network: for forward passes without gradients, and its weights.
        call: the same, wrapped so that gradients reach every process: for the others.
        left_out: samples left out so far, in batches: a sum of shares.
        skipped: steps skipped so far.
        consecutive_skips: how many of those came last, without a step taken since.
    """

    def __init__(
        self,
        network: Denoiser,
        context: DistributedContext,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.network, self.context = network, context
        self.call = context.prepare_trainable(network)
        self.optimizer = torch.optim.Adam(network.parameters(), betas=betas, eps=eps, fused=True)
        # On the device, so that no step waits to learn whether it was taken.
        self.left_out, self.skipped, self.consecutive_skips = torch.zeros(3, device=context.device)

    def optimizer_step(
        self, losses: Sequence[Callable[[], Loss]], lr: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Take one Adam step on the sum of all losses, of this process and the others.

        A step whose gradient is not finite, or that has no sample left, is skipped: weights and
        moments stay as they were, in every process.

        Args:
            losses: this process's share, each computed and differentiated on its own, so that
                memory holds one micro-batch. Gradients are exchanged once, with the last (those
                of a sharded network with each).
            lr: the learning rate of this step.

        Returns:
            The scalars' means over `losses`, and the gradient's norm over all parameters.
        """
        self.optimizer.zero_grad(set_to_none=True)
        done: list[Loss] = []
        for number, compute in enumerate(losses, start=1):
            with self._gradient_sync(number == len(losses)):
                loss = compute()
                (loss.total * self.context.size).backward()  # the exchange takes the mean
            done.append(Loss(loss.total.detach(), loss.left_out, loss.logged))
        norm = self._gradient_norm()
        left_out = self.context.average(torch.stack([loss.left_out for loss in done]).mean())
        skipped = (norm.isfinite() & (left_out < 1)).logical_not().float()
        self.left_out = self.left_out + left_out
        self.skipped = self.skipped + skipped
        self.consecutive_skips = (self.consecutive_skips + skipped) * skipped
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        # What torch's own GradScaler tells a fused Adam: at 1 it changes nothing.
        self.optimizer.found_inf = skipped  # type: ignore[attr-defined]
        self.optimizer.step()
        names = done[0].logged
        return {k: torch.stack([loss.logged[k] for loss in done]).mean() for k in names}, norm

    @contextmanager
    def _gradient_sync(self, now: bool) -> Iterator[None]:
        """Exchange gradients in this backward pass, or leave them to a later one.

        A sharded network always exchanges, for a gradient that waits is held whole.
        """
        if isinstance(self.call, DistributedDataParallel) and not now:
            with self.call.no_sync():
                yield
        else:
            yield

    @torch.no_grad()
    def _gradient_norm(self) -> Tensor:
        """The norm of the whole gradient, as it came."""
        parameters = self.network.parameters()
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        squared = norms.square().sum()
        if self.context.shard:
            torch.distributed.all_reduce(squared)
        return squared.sqrt()

    def optimizer_state(self) -> dict[str, Any]:
        """Adam's moments by parameter name, whole; every process must ask."""
        return get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Go on from `optimizer_state()`, which every process must hold."""
        set_optimizer_state_dict(self.network, self.optimizer, state, options=WHOLE)


def full_state_dict(network: Denoiser) -> dict[str, Any]:
    """A network's state dict on the CPU, gathered if it is sharded; every process must ask."""
    return get_model_state_dict(network, options=WHOLE)


def load_weights(network: Denoiser, weights: dict[str, Any]) -> None:
    """Copy whole weights into a network, sharded or not."""
    set_model_state_dict(network, weights, options=WHOLE)


@torch.no_grad()
def update_ema(ema: Denoiser, network: Denoiser, beta: float) -> None:
    """ema <- beta ema + (1 - beta) network, over parameters."""
    pairs = list(zip(ema.parameters(), network.parameters(), strict=True))
    averages, weights = [local(a) for a, _ in pairs], [local(b) for _, b in pairs]
    torch._foreach_lerp_(averages, weights, 1 - beta)


def ema_beta(batch: int, halflife: float, images_seen: int) -> float:
    """0.5^(batch / halflife), the half-life at most 5 % of the images seen (facts, section 2)."""
    return float(0.5 ** (batch / max(min(halflife, 0.05 * images_seen), 1e-8)))
