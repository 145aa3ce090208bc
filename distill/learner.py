"""A network that learns: Adam, accumulated gradients, their exchange between processes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from distill.distributed import World, local
from distill.networks import Denoiser

# Weights as one process without sharding would hold them, whatever the number of processes.
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

# A loss to descend, a scalar already scaled, and other scalars to log.
Loss = tuple[Tensor, dict[str, Tensor]]


class Learner:
    """A network with its optimiser.

    Attributes:
        network: the bare network: for forward passes without gradients, and its weights.
        call: the same, wrapped so that gradients reach every process: for the others.
    """

    def __init__(
        self,
        network: Denoiser,
        world: World,
        betas: tuple[float, float],
        eps: float,
    ) -> None:
        self.network, self.world = network, world
        self.call = world.trained(network)
        self.optimizer = torch.optim.Adam(network.parameters(), betas=betas, eps=eps, fused=True)

    def descend(
        self, losses: Sequence[Callable[[], Loss]], lr: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Take one Adam step on the sum of all losses, of this process and the others.

        Args:
            losses: this process's share, each computed and differentiated on its own, so that
                memory holds one micro-batch. Gradients are exchanged once, with the last.
            lr: the learning rate of this step.

        Returns:
            The scalars' means over `losses`, and the gradient's norm over all parameters.
        """
        self.optimizer.zero_grad(set_to_none=True)
        logged: list[dict[str, Tensor]] = []
        for number, compute in enumerate(losses, start=1):
            with self._exchanging(number == len(losses)):
                loss, scalars = compute()
                (loss * self.world.size).backward()  # the exchange takes the mean
            logged.append(scalars)
        norm = self._clean_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        means = {name: torch.stack([one[name] for one in logged]).mean() for name in logged[0]}
        return means, norm

    @contextmanager
    def _exchanging(self, now: bool) -> Iterator[None]:
        """Exchange gradients in this backward pass, or leave them to a later one."""
        if isinstance(self.call, FSDPModule):
            self.call.set_requires_gradient_sync(now)
            yield
        elif isinstance(self.call, DistributedDataParallel) and not now:
            with self.call.no_sync():
                yield
        else:
            yield

    @torch.no_grad()
    def _clean_gradients(self) -> Tensor:
        """Replace NaN by 0 and infinities by +-1e5 (facts, section 2); return the norm."""
        parameters = self.network.parameters()
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0, posinf=1e5, neginf=-1e5, out=gradient)
        norms = torch.stack(torch._foreach_norm(gradients))
        squared = norms.square().sum()
        if self.world.shard:
            torch.distributed.all_reduce(squared)
        return squared.sqrt()

    def optimizer_state(self) -> dict[str, Any]:
        """Adam's moments by parameter name, whole; every process must ask."""
        return get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Go on from `optimizer_state()`, which every process must hold."""
        set_optimizer_state_dict(self.network, self.optimizer, state, options=WHOLE)


def whole_weights(network: Denoiser) -> dict[str, Any]:
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
