"""Which layer of a network leaves float16's range, to say so where its float16 graph is refused."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

LARGEST_FLOAT16 = torch.finfo(torch.float16).max  # 65,504


class Peak(NamedTuple):
    """The largest number that a network computes with.

    Attributes:
        layer: the name of the module that made it.
        size: its absolute value.
    """

    layer: str
    size: float

    @property
    def overflows(self) -> bool:
        """Whether float16 has no such number."""
        return self.size > LARGEST_FLOAT16


@contextmanager
def watched_peaks(network: nn.Module) -> Iterator[list[Peak]]:
    """Watch the outputs of a network's innermost modules.

    Args:
        network: what is called inside the context.

    Returns:
        A list that grows with each call of a module.
    """
    peaks: list[Peak] = []

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.is_floating_point():
                peaks.append(Peak(name, float(output.abs().max())))

        return module.register_forward_hook(note)

    innermost = [(name, one) for name, one in network.named_modules() if not any(one.children())]
    handles = [watch(name, one) for name, one in innermost]
    try:
        yield peaks
    finally:
        for handle in handles:
            handle.remove()
