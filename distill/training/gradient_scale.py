"""The factor that keeps float16 gradients from vanishing: found while training, on the device."""

import torch
from torch import Tensor

# float16 has learned at a factor of 1. From here eight skipped steps lead there, and only ten in
# a row end a run (`distill.training.divergence`): a healthy one does not end while it looks.
START = 2.0**8
# Every so many steps a doubling is tried; one that was too much costs one skipped step.
GROWTH_INTERVAL = 500


class GradientScale:
    """A loss is multiplied by it before the backward pass, its gradient is divided by it after.

    The rule is torch's own (`torch.amp.GradScaler`): halved after a gradient that overflowed,
    doubled after `GROWTH_INTERVAL` steps without one. Nothing here waits for the device.

    Attributes:
        factor: float32 scalar, in place.
        good_steps: int32 scalar, steps since the last change, in place.
    """

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), START, device=device)
        self.good_steps = torch.zeros((), dtype=torch.int32, device=device)

    def update(self, overflowed: Tensor) -> None:
        """Halve, keep or double the factor.

        Args:
            overflowed: float32 scalar, 1 where this step's gradient was not finite.
        """
        torch._amp_update_scale_(
            self.factor, self.good_steps, overflowed, 2.0, 0.5, GROWTH_INTERVAL
        )

    def state(self) -> dict[str, float]:
        """What `load_state` goes on from."""
        return {"factor": float(self.factor), "good_steps": int(self.good_steps)}

    def load_state(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        self.factor.fill_(state["factor"])
        self.good_steps.fill_(state["good_steps"])
