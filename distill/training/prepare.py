"""Where and how the networks of a training lie in memory, and in what they compute."""

from distill.networks import Denoiser
from distill.training.distributed import DistributedContext
from distill.training.network_form import NetworkForm, lay_out
from distill.training.precision import compute_dtype
from distill.training_config import TrainingPrecision


def prepared(
    network: Denoiser, precision: TrainingPrecision, context: DistributedContext, form: NetworkForm
) -> Denoiser:
    """Move a network, in place, to where it is built; lay it out for, and set, the precision.

    Raises:
        UserError: the device does not compute in that precision.
    """
    network.to(context.build_device)
    lay_out(network, form, context.device)
    network.compute_dtype = compute_dtype(precision, context.device)
    return network
