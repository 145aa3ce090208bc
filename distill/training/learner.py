"""A network that learns: Adam, accumulated gradients, their exchange between processes."""

from collections.abc import Iterator
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
from distill.networks.magnitude import unit_rows
from distill.training.distributed import DistributedContext, local
from distill.training.gradient_scale import GradientScale

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

    All that a step changes are tensors that stay where they are, and the rate is one of them: so a
    step can be captured as a CUDA graph (`distill.training.cuda_graph`).

    Args:
        network: what learns, in its final place and memory layout.
        context: this process among those of the run.
        betas: Adam's decay rates.
        eps: Adam's eps.
        scaled: scale losses so that float16 gradients do not vanish.
        clip: each element of a gradient is cut to this much either way, before Adam sees it; None:
            it is left as it is.
        held: hold the weights that the network wants held, see `hold_weights`.

    Attributes:
        network: the bare network: for forward passes without gradients, and its weights.
        call: the same, wrapped so that gradients reach every process: for the others.
        parameters: the network's, this process's share of them.
        rate: Adam's learning rate, a scalar.
        scale: what losses are scaled by; None: they are not.
        norm: the norm of the last step's gradient over all parameters, as it came.
        skip: 1 if the last step was skipped, else 0.
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
        scaled: bool = False,
        clip: float | None = None,
        held: bool = True,
    ) -> None:
        self.network, self.context, self._clip = network, context, clip
        self.call = context.prepare_trainable(network)
        self.parameters = list(network.parameters())
        device, on_cuda = context.device, context.device.type == "cuda"
        # On a CPU the kernel computes with Python's number, of 64 bits; on CUDA it wants 32.
        self.rate = torch.zeros((), dtype=torch.float32 if on_cuda else torch.float64).to(device)
        self.optimizer = torch.optim.Adam(
            self.parameters, self.rate, betas, eps, fused=True, capturable=on_cuda
        )
        self.scale = GradientScale(device) if scaled else None
        # On the device, so that no step waits to learn whether it was taken.
        self.norm, self.skip = torch.zeros((), device=device), torch.ones((), device=device)
        self.left_out = torch.zeros((), device=device)
        self.skipped = torch.zeros((), device=device)
        self.consecutive_skips = torch.zeros((), device=device)
        # What torch's own GradScaler tells a fused Adam: at 1 it changes nothing.
        self.optimizer.found_inf = self.skip  # type: ignore[attr-defined]
        self._place_gradients_and_moments()
        self._held = network.model.unit_weights() if held else []
        self.hold_weights()

    def _place_gradients_and_moments(self) -> None:
        """Make them, zero and laid out like the weights, where they then stay."""
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()  # which `skip` makes a skipped one
        self.skip.zero_()

    def begin_step(self, rate: float) -> None:
        """Set the learning rate of the next step, and its gradient to zero."""
        self.rate.fill_(rate)
        self.norm.zero_()
        torch._foreach_zero_(self._gradients())

    @contextmanager
    def gradient_sync(self, now: bool) -> Iterator[None]:
        """Exchange gradients in a forward and its backward pass, or leave them to a later one.

        A sharded network always exchanges, for a gradient that waits is held whole.
        """
        if isinstance(self.call, DistributedDataParallel) and not now:
            with self.call.no_sync():
                yield
        else:
            yield

    def backward(self, loss: Loss) -> None:
        """Add a loss's gradient to what there is."""
        (loss.total if self.scale is None else loss.total * self.scale.factor).backward()

    @torch.no_grad()
    def take_step(self, left_out: Tensor) -> None:
        """Take one Adam step on the gradients added up since `begin_step`, of all processes.

        A step whose gradient is not finite, or that has no sample left, is skipped: weights and
        moments stay as they were, in every process.

        Args:
            left_out: the share of samples that are not in it, the mean over the processes.
        """
        gradients, size = self._gradients(), self.context.size
        # The exchange took the mean, and the gradient is the sum.
        if self.scale is not None:
            torch._foreach_mul_(gradients, size / self.scale.factor)
        elif size > 1:
            torch._foreach_mul_(gradients, size)
        self.norm.copy_(self._norm(gradients))
        overflowed = self.norm.isfinite().logical_not()
        self.skip.copy_(overflowed | (left_out >= 1))
        self.left_out.add_(left_out)
        self.skipped.add_(self.skip)
        self.consecutive_skips.add_(self.skip).mul_(self.skip)
        if self._clip is not None:
            torch._foreach_clamp_min_(gradients, -self._clip)
            torch._foreach_clamp_max_(gradients, self._clip)
        self.optimizer.step()
        if self.scale is not None:
            self.scale.update(overflowed.float())

    @torch.no_grad()
    def hold_weights(self) -> None:
        """Bring the rows of all weights that are held (`RawNetwork.unit_weights`) to length one.

        To be called after each step, once the average has followed it. A network normalises these
        weights where it uses them, so this changes what it learns and not what it computes.
        """
        for weight in self._held:
            rows = local(weight)  # of a sharded network whole rows too: it is cut between them
            rows.copy_(unit_rows(rows))

    def _gradients(self) -> list[Tensor]:
        """This process's share of each parameter's gradient."""
        return [local(p.grad) for p in self.parameters if p.grad is not None]

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of the whole gradient, of which this process has `gradients`."""
        squared = torch.stack(torch._foreach_norm(gradients)).square().sum()
        if self.context.shard:
            torch.distributed.all_reduce(squared)
        return squared.sqrt()

    def changing(self) -> dict[str, list[Tensor]]:
        """Every tensor that a step changes, by what it is."""
        moments = [self.optimizer.state[p] for p in self.parameters]
        counts = [self.skip, self.left_out, self.skipped, self.consecutive_skips]
        if self.scale is not None:
            counts += [self.scale.factor, self.scale.good_steps]
        return {
            "gradients": [*self._gradients(), self.norm],
            "weights": list(self.parameters),
            "moments": [m[name] for m in moments for name in ("exp_avg", "exp_avg_sq")],
            "counts": counts + [m["step"] for m in moments],
        }

    def optimizer_state(self) -> dict[str, Any]:
        """Adam's moments by parameter name, whole, and the scale; every process must ask."""
        state: Any = get_optimizer_state_dict(self.network, self.optimizer, options=WHOLE)
        for group in state.get("param_groups", ()):  # which process 0 alone is given
            group["lr"] = float(group["lr"])
        return state if self.scale is None else state | {"scale": self.scale.state()}

    def load_optimizer_state(self, state: dict[str, Any]) -> None:
        """Go on from `optimizer_state()`, which every process must hold."""
        kept = {
            name: self.optimizer.param_groups[0][name] for name in ("lr", "fused", "capturable")
        }
        state, moments = dict(state), self.optimizer.state
        scale = state.pop("scale", None)
        set_optimizer_state_dict(self.network, self.optimizer, state, options=WHOLE)
        # torch put other tensors in their place, laid out as they were saved. A fused Adam reads
        # all memory in the order of the weights, which another form of the network has changed.
        for parameter, places in moments.items():
            for name, place in places.items():
                place.copy_(self.optimizer.state[parameter][name])
        self.optimizer.state = moments
        for group in self.optimizer.param_groups:  # a state says how it was trained where it was
            group.update(kept)
        if self.scale is not None and scale is not None:
            self.scale.load_state(scale)


def full_state_dict(network: Denoiser) -> dict[str, Any]:
    """A network's state dict on the CPU, gathered if it is sharded; every process must ask."""
    return get_model_state_dict(network, options=WHOLE)


def load_weights(network: Denoiser, weights: dict[str, Any]) -> None:
    """Copy whole weights into a network, sharded or not."""
    set_model_state_dict(network, weights, options=WHOLE)


@torch.no_grad()
def update_ema(ema: Denoiser, network: Denoiser, weight: Tensor) -> None:
    """ema <- ema + weight (network - ema), over parameters; the weight is a scalar."""
    averages = [local(p) for p in ema.parameters()]
    weights = [local(p) for p in network.parameters()]
    torch._foreach_lerp_(averages, weights, [weight] * len(weights))


def ema_beta(batch: int, halflife: float, images_seen: int) -> float:
    """0.5^(batch / halflife), the half-life at most 5 % of the images seen (facts, section 2)."""
    return float(0.5 ** (batch / max(min(halflife, 0.05 * images_seen), 1e-8)))
