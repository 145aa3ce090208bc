"""The engine for NVIDIA GPUs on the processors: the same code, buffers and run options."""

from typing import ClassVar

from service.engines.cuda import CudaEngine, Device


class PaddedEngine(CudaEngine):
    """Only what its session computes on is another; processors record nothing when told to."""

    name = "padded"
    device: ClassVar[Device] = Device("cpu", "CPUExecutionProvider", {})
