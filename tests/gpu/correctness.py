"""Whether the card computes the right numbers, in every precision."""

import copy
import statistics

import numpy as np
import torch

from distill.checkpoints import load_network
from distill.importing import load_network as load_released
from distill.networks import Denoiser
from distill.training.precision import DTYPES, EXACT, set_switches
from distill.training_config import TrainingPrecision
from service.bundle import latents
from tests.gpu.networks import make_sid, sid_config
from tests.gpu.record import Record
from tests.gpu.runner import ROOT
from tests.gpu.timing import on
from tests.reference_numbers import FIXTURES

NETWORKS = ("ddpmpp", "ncsnpp", "adm")
_PRECISIONS: tuple[TrainingPrecision, ...] = ("float32", "bfloat16", "float16")
_TEACHER = ROOT / "distill" / "pretrained" / "fashion-teacher.safetensors"
_NOISES = ((1, 28, 28), (3, 32, 32), (3, 64, 64), (12, 32, 32), (3, 256, 256))
_SEEDS = (0, 1, 7, 2**31, 2**32 - 1, 2**32 + 7, 2**63, 2**64 - 1)


def run(record: Record) -> None:
    """Fill the table."""
    set_switches(EXACT)
    for name in NETWORKS:
        for precision, difference in outputs(name, on(record.toy)).items():
            record.row(f"{name} {precision}", difference)
    if record.toy:
        record.note("torch.randn draws another stream on the CPU: seeds are compared on a card")
    else:
        record.row("seeds", noise_difference(on(record.toy)))
    losses(record)


@torch.no_grad()
def outputs(name: str, device: torch.device) -> dict[TrainingPrecision, float]:
    """By precision, the largest difference of a network's output from the reference numbers."""
    denoiser = load_released(FIXTURES / f"{name}.pkl").to(device)
    with np.load(FIXTURES / f"{name}.npz") as file:
        case = {key: torch.from_numpy(file[key]).to(device) for key in file}
    differences: dict[TrainingPrecision, float] = {}
    for precision in _PRECISIONS:
        denoiser.compute_dtype = None if precision == "float32" else DTYPES[precision]
        denoised = denoiser(case["x"], case["sigma"], case["labels"])
        differences[precision] = (denoised - case["denoised"]).abs().max().item()
    return differences


def noise_difference(device: torch.device) -> float:
    """The largest difference between a seed's noise and what torch draws on the card for it."""
    differences = []
    for shape in _NOISES:
        for seed in _SEEDS:
            generator = torch.Generator(device).manual_seed(seed % 2**32)
            drawn = torch.randn(shape, device=device, generator=generator).cpu().numpy()
            differences.append(float(np.abs(latents([seed], shape)[0] - drawn).max()))
    return float(np.max(differences))  # NaN where one is


def losses(record: Record) -> None:
    """Take the same steps of SiD in each precision, from the shipped teacher."""
    teacher, _ = load_network(_TEACHER)
    steps, batch = (2, 16) if record.toy else (40, 128)
    expected = means(record, teacher, "float32", steps, batch)
    for precision in _PRECISIONS[1:]:
        if record.toy and precision == "float16":
            record.note("float16 trains on a card only")
            continue
        got = means(record, teacher, precision, steps, batch)
        relative = {name: abs(got[name] - one) / abs(one) for name, one in expected.items()}
        record.row(f"losses {precision}", float(np.max([*relative.values()])), **relative)


def means(
    record: Record, teacher: Denoiser, precision: TrainingPrecision, steps: int, batch: int
) -> dict[str, float]:
    """Both losses and the score gap, each its mean over the steps; NaN where one is."""
    config = sid_config("fashion", batch, precision, batch)
    training = make_sid(copy.deepcopy(teacher), config, on(record.toy))
    logged = [training.step(number * batch) for number in range(steps)]
    names = ["loss/fake_score", "loss/generator"]
    if not record.toy:  # in which the gap has not opened yet, and is what rounding leaves
        names.append("score gap")
    return {name: statistics.fmean(one[name].item() for one in logged) for name in names}
