"""A CUDA graph on the CPU: what torch computed is recorded call by call, and computed again.

As in a graph all Python is frozen: numbers are those of the capture, and tensors are the memory
that they were then. Random calls draw anew, from torch's default generator as it is seeded.
"""

from contextlib import nullcontext

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

# What a capture on CUDA refuses: reading a value, and shapes that come from values.
WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}


class AtenRecorder:
    """A `distill.training.cuda_graph.Recorder`; counts what it recorded and replayed."""

    def __init__(self):
        self.recorded = self.replayed = self.cleaned_up = 0

    def aside(self):
        return nullcontext()

    def record(self, work):
        self.recorded += 1
        tape = _Tape()
        with tape:
            work()

        def replay():
            self.replayed += 1
            tape.replay()

        return replay

    def clean_up(self):
        self.cleaned_up += 1


class _Tape(TorchDispatchMode):
    """Notes every call below autograd, with its arguments and what it returned."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name in WAITS:
            raise RuntimeError(f"{function} waits for the device, which a capture does not permit")
        given = tree_map(lambda leaf: leaf, (args, kwargs or {}))  # lists may change afterwards
        returned = function(*args, **(kwargs or {}))
        known = {_memory(leaf) for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor)}
        self.calls.append((function, given, tree_leaves(returned), known))
        return returned

    def replay(self):
        with torch._C._AutoDispatchBelowAutograd():
            for function, (args, kwargs), before, known in self.calls:
                for old, new in zip(before, tree_leaves(function(*args, **kwargs)), strict=True):
                    # A view or what was changed in place lies in memory that was there before.
                    if isinstance(old, torch.Tensor) and _memory(old) not in known:
                        old.copy_(new)


def _memory(tensor):
    return tensor.untyped_storage()._cdata
