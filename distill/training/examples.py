"""Where the examples of a training lie, and how those of a micro-batch reach the device.

Nothing here waits for a CUDA card. So the host runs ahead of it: while the card computes one
micro-batch, the host picks and sends the next ones, without threads of its own.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class Examples:
    """Examples, of which each micro-batch is given some.

    On a card that has the room they lie there whole, and the host sends no more than which are
    meant. Otherwise they stay in the host's memory, and those that are meant are sent.

    Args:
        tensors: on the host; each [N, ...] with a row an example.
        count: how many a micro-batch has.
        device: where they are to be, with all that else has to have room there already in place.

    Attributes:
        batch: the examples of the current micro-batch, each [count, ...], on the device; the same
            memory for all micro-batches.
    """

    def __init__(self, tensors: Sequence[Tensor], count: int, device: torch.device) -> None:
        self._device = device
        self._on_device = _has_room(device, sum(tensor.nbytes for tensor in tensors))
        self._rows = [tensor.to(device) if self._on_device else tensor for tensor in tensors]
        shapes = [(count, *tensor.shape[1:]) for tensor in tensors]
        self.batch = [
            tensor.new_empty(shape, device=device)
            for tensor, shape in zip(tensors, shapes, strict=True)
        ]

    def load(self, indices: Tensor) -> None:
        """Put the examples of these numbers, int64 [count] on the host, into `batch`."""
        if self._on_device:
            here = torch.empty_like(indices, device=self._device)
            send(indices, here)
            for rows, batch in zip(self._rows, self.batch, strict=True):
                torch.index_select(rows, 0, here, out=batch)
            return
        for rows, batch in zip(self._rows, self.batch, strict=True):
            picked = torch.empty(batch.shape, dtype=batch.dtype, pin_memory=batch.is_cuda)
            send(torch.index_select(rows, 0, indices, out=picked), batch)


def send(source: Tensor, target: Tensor) -> None:
    """Copy a tensor of the host into one of the device, without waiting for it.

    A CUDA card reads only page-locked ("pinned") memory while the host goes on. torch keeps such
    memory from being used again until the card has read it, so the source may be dropped.
    """
    if target.is_cuda and not source.is_pinned():
        source = source.pin_memory()
    target.copy_(source, non_blocking=True)


def _has_room(device: torch.device, size: int) -> bool:
    """Whether `size` bytes take at most half of the memory that a device has left.

    The other half is for what a step computes. (On a CPU nothing is copied.)
    """
    return device.type != "cuda" or size <= torch.cuda.mem_get_info(device)[0] // 2
