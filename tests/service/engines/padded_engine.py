"""The engine for NVIDIA GPUs on the processors: the same code, buffers and run options."""

from collections.abc import Sequence
from typing import ClassVar

from service.bundle import BASELINE
from service.engines.cuda import CudaEngine, Device


class PaddedEngine(CudaEngine):
    """Only what its session computes on is another; processors record nothing when told to."""

    name = "padded"
    recordable: ClassVar[Sequence[str]] = (BASELINE,)
    device: ClassVar[Device] = Device("cpu", "CPUExecutionProvider", {})
