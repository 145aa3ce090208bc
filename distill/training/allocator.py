"""How the C library treats memory that tensors give back."""

import ctypes

# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Have freed memory stay with this process, where the next step takes it again.

    Otherwise every large tensor is a mapping of its own, which goes back to the kernel when the
    tensor dies and is faulted in anew, page by page and filled with zeros, by the next step:
    some 69,500 page faults a step of the CIFAR-size network. No mappings (M_MMAP_MAX 0) and no
    trimming of the heap (M_TRIM_THRESHOLD -1) end that; the process keeps its peak until it ends.

    It rules only what is allocated later, so call it first. Does nothing where the C library has
    no `mallopt` (musl, macOS).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
