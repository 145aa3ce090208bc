"""The engine for NVIDIA GPUs on the processors: the same code, buffers and run options."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from service.bundle import BASELINE, latents
from service.engines.cuda import CudaEngine, Provider


class PaddedEngine(CudaEngine):
    """Only what its session computes on is another; processors record nothing when told to."""

    name = "padded"
    recordable: ClassVar[Sequence[str]] = (BASELINE,)
    provider: ClassVar[Provider] = Provider("CPUExecutionProvider", "cpu", {})


def drawn_for(bundle, count):
    """Noise and labels of as many images."""
    return latents(range(count), bundle.manifest.latent_shape), np.arange(count) % 3
