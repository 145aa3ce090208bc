"""Seeds to noise: the contract `philox4x32-cuda`.

A seed must give the picture that the paper's own sampler gives on a GPU, on every engine
and processor, whatever shares its batch. That sampler draws each image's noise with
`torch.randn` from a CUDA generator: Philox4x32-10 followed by Box-Muller. Here the same
stream is computed in float64 and rounded to float32 once, because float32 logarithms and
sines differ between processors; the result agrees with CUDA's to about 1e-6.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and
cuRAND's `curand_init` and `curand_normal`.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

SEED_CONTRACT: Final = "philox4x32-cuda"
SEED_MAX = 2**64 - 1

# np.uint64 throughout: numpy 1.26 turns uint64 mixed with a Python int into float64.
_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ZERO = np.uint64(0)
_ROUNDS = 10

Words = npt.NDArray[np.uint64] | np.uint64


class SeedError(ValueError):
    """A seed that is not a whole number from 0 to 2^64 - 1."""


def check_seed(seed: object) -> int:
    """Return `seed` as an int; raise SeedError unless it is an integer in 0..2^64-1."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise SeedError(f"seed must be a whole number from 0 to {SEED_MAX}, not {seed!r}")
    if not 0 <= seed <= SEED_MAX:
        raise SeedError(f"seed must be from 0 to {SEED_MAX}, not {seed}")
    return int(seed)


def latents(
    seeds: Sequence[int] | npt.NDArray[np.uint64], shape: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Draw standard normal noise, one row a seed: float32 [N, *shape].

    Row i depends on seeds[i] and `shape` only. The paper's sampler seeds its generator with
    seed mod 2^32, so seeds that are equal modulo 2^32 give the same picture.

    Args:
        seeds: N integers in 0..2^64-1.
        shape: the shape of one row, in practice (C, H, W).

    Raises:
        SeedError: a seed is out of range or not an integer (a ValueError).
    """
    key = _as_array(seeds)[:, None] & _LOW
    index = np.arange(math.prod(shape), dtype=np.uint64)[None, :]
    word0, word1, _, _ = philox4x32((_ZERO, _ZERO, index, _ZERO), (key, _ZERO))
    return _box_muller(word0, word1).astype(np.float32).reshape(len(key), *shape)


def philox4x32(
    counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]
) -> tuple[Words, Words, Words, Words]:
    """Philox4x32-10: one block of four 32-bit words for each (counter, key).

    Words are uint64 arrays or scalars that hold 32-bit values and broadcast together; 64
    bits leave room for the products.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0 = c0 * _MULTIPLIER[0]
        product1 = c2 * _MULTIPLIER[1]
        c0, c1, c2, c3 = (
            (product1 >> _32) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _32) ^ c3 ^ k1,
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def _box_muller(word0: Words, word1: Words) -> npt.NDArray[np.float64]:
    """The sine half of cuRAND's Box-Muller; u is never 0, so the logarithm is finite."""
    u = np.asarray(word0, np.float64) * 2.0**-32 + 2.0**-33
    v = np.asarray(word1, np.float64) * (2 * np.pi * 2.0**-32) + np.pi * 2.0**-32
    values: npt.NDArray[np.float64] = np.sqrt(-2.0 * np.log(u)) * np.sin(v)
    return values


def _as_array(seeds: Sequence[int] | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    if isinstance(seeds, np.ndarray) and seeds.dtype == np.uint64:
        if seeds.ndim != 1:
            raise SeedError(f"seeds must be one-dimensional, not of shape {seeds.shape}")
        return seeds
    return np.array([check_seed(seed) for seed in seeds], dtype=np.uint64)
