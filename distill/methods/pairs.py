"""What a teacher makes of a noise: pairs for a generator to learn from before it is distilled.

A pair's noise and class are functions of its number, so that only the images are kept: in parts
of `PAIRS_PER_PART`, files of a folder, which several processes draw beside one another and an
interrupted drawing goes on from.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from distill.checkpoints import sha256_of_weights
from distill.data.datasets import one_hot
from distill.errors import UserError, first_line
from distill.networks import Denoiser, NetworkLayout
from distill.sampling import heun
from distill.text_files import read_text
from distill.training.distributed import DistributedContext
from distill.training.precision import compute_dtype
from distill.training_config import RegressionConfig, TrainingPrecision, current_precision
from service.bundle import write_atomically

PAIRS_PER_PART = 64
_ABOUT = "pairs.json"


@dataclass(frozen=True)
class Pairs:
    """Noises and what a teacher drew from them.

    Attributes:
        network: of the teacher: shape and classes.
        seed: start of the noises.
        images: uint8 [N, C, H, W].
    """

    network: NetworkLayout
    seed: int
    images: Tensor

    def __len__(self) -> int:
        return len(self.images)


def pair_latents(network: NetworkLayout, seed: int, numbers: list[int]) -> Tensor:
    """The standard normal latents [n, C, H, W] of pairs, on the host."""
    words = (np.random.SeedSequence([seed, i]).generate_state(1, np.uint64)[0] for i in numbers)
    generators = (torch.Generator().manual_seed(int(word) >> 1) for word in words)
    shape = network.latent_shape
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def pair_labels(network: NetworkLayout, numbers: Tensor) -> Tensor | None:
    """The one-hot labels of pairs int64 [n], class i mod classes for pair i; None without."""
    return one_hot(numbers % network.label_dim, network.label_dim) if network.label_dim else None


def draw_pairs(
    teacher: Denoiser,
    config: RegressionConfig,
    folder: Path,
    context: DistributedContext,
    progress: bool = True,
) -> Pairs:
    """Draw `config.pairs` pairs into a folder, or what is missing there, and read them all.

    Args:
        teacher: in eval mode, on `context.device`; it is left in `config.precision`.
        config: how many pairs, from which level, in how many of Heun's steps.
        folder: of the parts; all processes must see it.
        context: its processes share the work.
        progress: show a progress bar.

    Raises:
        UserError: the folder holds another teacher's pairs, or a damaged part.
    """
    about = {
        "teacher": sha256_of_weights(teacher),
        "steps": config.steps,
        "sigma_init": config.sigma_init,
        "seed": config.seed,
        "precision": config.precision,
    }
    _claim(folder / _ABOUT, about, context)
    teacher.compute_dtype = compute_dtype(config.precision, context.device)
    parts = -(-config.pairs // PAIRS_PER_PART)
    files = [folder / f"{i:06}.npy" for i in range(parts)]
    missing = [i for i in range(parts) if not files[i].is_file()][context.rank :: context.size]
    for i in tqdm(missing, unit="part", desc="pairs", disable=not (progress and context.is_main)):
        numbers = list(range(i * PAIRS_PER_PART, (i + 1) * PAIRS_PER_PART))
        drawn = [
            _draw(teacher, config, numbers[j : j + config.microbatch])
            for j in range(0, PAIRS_PER_PART, config.microbatch)
        ]
        _write(files[i], torch.cat(drawn).numpy())
    context.any(False)  # wait for the others' parts
    images = torch.from_numpy(np.concatenate([_read(file) for file in files]))[: config.pairs]
    return Pairs(teacher.config, config.seed, images)


def drawn_precision(folder: Path) -> TrainingPrecision | None:
    """In which precision the pairs in a folder were drawn; None where there are none."""
    file = folder / _ABOUT
    drawn: TrainingPrecision | None = None
    if file.is_file():
        drawn = current_precision(_held(file).get("precision"))
    return drawn


def _draw(teacher: Denoiser, config: RegressionConfig, numbers: list[int]) -> Tensor:
    device = next(teacher.parameters()).device
    z = pair_latents(teacher.config, config.seed, numbers)
    z = z.to(device, memory_format=torch.channels_last)
    labels = pair_labels(teacher.config, torch.tensor(numbers, device=device))
    images = heun(teacher, z, labels, config.steps, config.sigma_init)
    return (images * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def _claim(file: Path, about: dict[str, object], context: DistributedContext) -> None:
    """Note what the folder's pairs are of; raise UserError if they are of something else."""
    held = _held(file) if file.is_file() else about
    held = {name: current_precision(value) for name, value in held.items()}
    different = sorted(name for name in about if held.get(name) != about[name])
    if context.any(bool(different)):
        raise UserError(
            f"{file.parent} holds pairs that were drawn with another {', '.join(different)}: "
            "choose another folder, or remove this one to draw them again"
        )
    if context.is_main:
        write_atomically(file, lambda path: path.write_text(json.dumps(about, indent=2) + "\n"))


def _held(file: Path) -> dict[str, object]:
    try:
        held = json.loads(read_text(file))
    except ValueError:
        held = None
    if not isinstance(held, dict):
        raise UserError(f"{file} is damaged: remove {file.parent} to draw its pairs again")
    return held


def _write(file: Path, images: np.ndarray) -> None:
    def save(path: Path) -> None:
        with path.open("wb") as stream:  # np.save would add .npy to the temporary file's name
            np.save(stream, images)

    write_atomically(file, save)


def _read(file: Path) -> np.ndarray:
    try:
        images: np.ndarray = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(
            f"{file} is damaged ({first_line(error)}): remove it, and the same command draws it "
            "again"
        ) from None
    return images
