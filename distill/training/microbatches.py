"""How a batch is divided: into micro-batches, and those among processes.

A micro-batch is what one network call takes. All its random draws (noise, labels, dropout,
augmentation) are a function of the run's seed, the images seen, the phase of the step and the
micro-batch's number, so a run does not depend on how many processes share the work, but for the
order in which sums are rounded, and a resumed run is the same run.
"""

import numpy as np
import torch

from distill.errors import UserError
from distill.training.distributed import DistributedContext
from distill.training_config import LoopConfig


def local_microbatches(config: LoopConfig, context: DistributedContext) -> range:
    """The numbers of the micro-batches that this process computes: every `context.size`-th.

    Raises:
        UserError: the batch cannot be divided evenly among the processes.
    """
    count = config.batch // config.images_per_call
    if count % context.size:
        raise UserError(
            f"a batch of {config.batch} in micro-batches of {config.images_per_call} cannot be "
            f"divided among {context.size} processes: choose a smaller --microbatch, or another "
            "--batch"
        )
    return range(context.rank, count, context.size)


def seed_rng(seed: int, images_seen: int, phase: int, microbatch: int) -> None:
    """Start torch's random streams, on every device, for one micro-batch.

    It is work of the host alone, and what a captured step draws from afterwards as well: torch
    hands the seed to a CUDA graph at each replay (`distill.training.cuda_graph`).
    """
    words = np.random.SeedSequence([seed, images_seen, phase, microbatch])
    torch.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)
