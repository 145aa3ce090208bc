"""In which precision the networks compute. Weights, losses and Adam's moments stay float32."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from distill.errors import UserError
from distill.networks import Denoiser
from distill.recipe import Precision


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Set torch's switches for a precision; return what F inside a denoiser computes in.

    fp32 is float32 throughout. tf32 lets CUDA multiply float32 with 10 bits of mantissa. bf16
    and fp16 run F under autocast. (The paper's fp16: Adam's eps is 1e-6 and the generator's loss
    is scaled by 100; see `SidConfig`.)

    Returns:
        For `Denoiser.compute_dtype`: None for float32.

    Raises:
        UserError: the device does not compute so.
    """
    if device.type != "cuda" and precision in ("tf32", "fp16"):
        raise UserError(
            f"--precision {precision} needs a CUDA device: on {device.type} take fp32, or bf16 "
            "for a large network"
        )
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)


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
