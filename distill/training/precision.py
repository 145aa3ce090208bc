"""In which precision the networks compute. Weights, losses and Adam's moments stay float32.

All of torch's switches for that are here. They rule the whole process, and CUDA alone: a training
sets them by `compute_dtype`, and whatever measures, shows or exports a network computes within
`full_float32`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from distill.errors import UserError
from distill.networks import Denoiser
from distill.training_config import TrainingPrecision

DTYPES: dict[TrainingPrecision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Switches(NamedTuple):
    """torch's switches for CUDA; these defaults are the exact ones, which are not torch's own.

    Attributes:
        tf32_products: matrix products round float32 to 10 bits of mantissa.
        tf32_convolutions: convolutions do; they do by torch's own default.
        low_sums: matrix products of bfloat16 or float16 may add up parts of a sum in that type; by
            torch's own default they may. Products are a small share of our networks' time, and the
            sum over a batch that is a weight's gradient would lose bits.
        benchmark: cuDNN times its algorithms for each new shape and takes the fastest. Which one
            that is may change from process to process, and with it the rounding.
    """

    tf32_products: bool = False
    tf32_convolutions: bool = False
    low_sums: bool = False
    benchmark: bool = False


EXACT = Switches()


def current_switches() -> Switches:
    """How torch's switches stand."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    low = products.allow_bf16_reduced_precision_reduction
    low = low or products.allow_fp16_reduced_precision_reduction
    return Switches(products.allow_tf32, cudnn.allow_tf32, low, cudnn.benchmark)


def set_switches(switches: Switches) -> None:
    """Set torch's switches, for this process."""
    products, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    # Not torch's newer `fp32_precision`: once that was set, whoever reads these gets an error.
    products.allow_tf32, cudnn.allow_tf32 = switches.tf32_products, switches.tf32_convolutions
    products.allow_bf16_reduced_precision_reduction = switches.low_sums
    products.allow_fp16_reduced_precision_reduction = switches.low_sums
    cudnn.benchmark = switches.benchmark


def compute_dtype(precision: TrainingPrecision, device: torch.device) -> torch.dtype | None:
    """Set torch's switches for a training; return what F inside a denoiser computes in.

    float32 is that throughout. tf32 lets CUDA multiply float32 with 10 bits of mantissa. bfloat16
    and float16 run F under autocast. (The paper's float16: Adam's eps is 1e-6 and the generator's
    loss is scaled by 100; see `SidConfig`.) A training's shapes are few and fixed, so cuDNN
    chooses its algorithms by time.

    Returns:
        For `Denoiser.compute_dtype`: None for float32.

    Raises:
        UserError: the device does not compute so.
    """
    if lacking := explain_lacking(precision, device):
        raise UserError(
            f"--precision {precision} {lacking}: take float32, or bfloat16 for a large network"
        )
    if device.type == "cuda":
        tf32 = precision == "tf32"
        set_switches(Switches(tf32_products=tf32, tf32_convolutions=tf32, benchmark=True))
    return None if precision == "float32" else DTYPES.get(precision)


def explain_lacking(precision: TrainingPrecision, device: torch.device) -> str | None:
    """What a precision needs that a device does not have; None if it computes in it."""
    if device.type != "cuda" and precision in ("tf32", "float16"):
        return f"needs a CUDA device, and this is {device.type}"
    return None


def default_precision(device: torch.device) -> TrainingPrecision:
    """Bfloat16 on CUDA cards that have it in hardware, float32 everywhere else."""
    if device.type != "cuda":
        return "float32"
    with torch.cuda.device(device):
        has_it = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if has_it else "float32"


@contextmanager
def full_float32(*networks: Denoiser) -> Iterator[None]:
    """Compute in float32 throughout, whatever a training chose; after it, as before.

    For all that is measured, shown or exported: the exported network is float32. So a distance
    is the same number whether a training measures it or 'sid-distill evaluate', in whichever
    process.

    Args:
        networks: what else computes in another precision by its own `compute_dtype`.
    """
    switches = current_switches()
    dtypes = [network.compute_dtype for network in networks]
    try:
        set_switches(EXACT)
        for network in networks:
            network.compute_dtype = None
        yield
    finally:
        set_switches(switches)
        for network, dtype in zip(networks, dtypes, strict=True):
            network.compute_dtype = dtype
