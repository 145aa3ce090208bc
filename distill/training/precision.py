"""In which precision the networks compute. Weights, losses and Adam's moments stay float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.errors import UserError
from distill.networks import Denoiser
from distill.training_config import TrainingPrecision

DTYPES: dict[TrainingPrecision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def compute_dtype(precision: TrainingPrecision, device: torch.device) -> torch.dtype | None:
    """Set torch's switches for a precision; return what F inside a denoiser computes in.

    float32 is that throughout. tf32 lets CUDA multiply float32 with 10 bits of mantissa. bfloat16
    and float16 run F under autocast. (The paper's float16: Adam's eps is 1e-6 and the generator's
    loss is scaled by 100; see `SidConfig`.)

    Returns:
        For `Denoiser.compute_dtype`: None for float32.

    Raises:
        UserError: the device does not compute so.
    """
    if device.type != "cuda" and precision in ("tf32", "float16"):
        raise UserError(
            f"--precision {precision} needs a CUDA device: on {device.type} take float32, or "
            "bfloat16 for a large network"
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return None if precision == "float32" else DTYPES.get(precision)


@contextmanager
def full_float32(*networks: Denoiser) -> Iterator[None]:
    """Compute in float32 throughout, whatever a training chose; after it, as before.

    A distance is measured so, during a training as by 'sid-distill evaluate': it is the exported
    network's, which is float32, and not that of torch's defaults, which let CUDA round
    convolutions to TF32.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    switches = matmul.allow_tf32, cudnn.allow_tf32
    dtypes = [network.compute_dtype for network in networks]
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = False
        for network in networks:
            network.compute_dtype = None
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = switches
        for network, dtype in zip(networks, dtypes, strict=True):
            network.compute_dtype = dtype
