"""Seeds to noise: the contract `philox4x32-cuda`.

A seed must give the image that the paper's own sampler gives on a GPU, on every engine
and processor, whatever shares its batch. That sampler draws each image's noise with
`torch.randn` from a CUDA generator: Philox4x32-10 followed by Box-Muller. Here the same
stream is computed in float64 and rounded to float32 once, because float32 logarithms and
sines differ between processors; the result agrees with CUDA's to about 1e-6.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), and
cuRAND's `curand_init` and `curand_normal`.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from service.exceptions import RefusedError

SEED_CONTRACT: Final = "philox4x32-cuda"
SEED_MAX = 2**64 - 1

# np.uint64 throughout: numpy 1.26 turns uint64 mixed with a Python int into float64.
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
# What the Weyl sequence adds to the key's two words by each of the ten rounds.
_STEP = np.arange(10, dtype=np.uint64)
_W0, _W1 = _STEP * np.uint64(0x9E3779B9), _STEP * np.uint64(0xBB67AE85) & _LOW
# Values drawn at a time: enough that numpy's overhead a call hardly shows, and few enough that the
# 48 bytes of scratch of each stay in a core's own cache.
_BLOCK = 16384

Words = npt.NDArray[np.uint64]


class SeedError(RefusedError, ValueError):
    """A seed that is not a whole number from 0 to 2^64 - 1."""

    status, kind = 422, "seed-out-of-range"


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
    seed mod 2^32, so seeds that are equal modulo 2^32 give the same image.

    Args:
        seeds: N integers in 0..2^64-1.
        shape: the shape of one row, in practice (C, H, W).

    Raises:
        SeedError: a seed is out of range or not an integer (a ValueError).
    """
    keys = _as_array(seeds)
    size = math.prod(shape)
    noise = np.empty((len(keys), size), np.float32)
    rows = max(1, min(len(keys), _BLOCK // max(1, size)))
    scratch = np.empty((3, 2, rows, size), np.uint64)
    for first in range(0, len(keys), rows):
        block = noise[first : first + rows]
        _draw(keys[first : first + rows], scratch[:, :, : len(block)], out=block)
    return noise.reshape(len(keys), *shape)


def _draw(seeds: Words, scratch: Words, out: npt.NDArray[np.float32]) -> None:
    """Fill `out`, [N, size], with the normals of N seeds; `scratch` is [3, 2, N, size].

    The words come from Philox4x32-10 with the counter (0, 0, i, 0) for value i and the key
    (seed mod 2^32, 0). Each of its rounds takes the counter (c0, c1, c2, c3) to

        (high(p1) ^ c1 ^ k0, low(p1), high(p0) ^ c3 ^ k1, low(p0)),  p0 = c0 M0, p1 = c2 M1

    and tests/service/bundle/test_seeds.py has it in that plain form. Here it takes as few passes
    over memory as give the same words, and no temporary: the first two rounds leave out what is
    zero in them, the last two what the result does not need. Words are 32 bits in uint64, which
    leaves room for the products.
    """
    words, lows, products = scratch
    c0, c2 = words
    c1, c3 = lows
    p1, p0 = products
    k0 = ((seeds + _W0[:, None]) & _LOW)[:, :, None]
    high, low = _first_product(out.shape[1])

    # Rounds 1 and 2: only c2 is not zero, then only c0 and c1.
    np.bitwise_xor(high, k0[0], out=p0)
    p0 *= _M0
    np.bitwise_xor(low, k0[1], out=c0)
    c1.fill(0)
    np.right_shift(p0, _32, out=c2)
    c2 ^= _W1[1]
    np.bitwise_and(p0, _LOW, out=c3)
    # Rounds 3 to 8.
    for key0, key1 in zip(k0[2:8], _W1[2:8], strict=True):
        np.multiply(c0, _M0, out=p0)
        np.multiply(c2, _M1, out=p1)
        np.right_shift(products, _32, out=words)
        words ^= lows
        c0 ^= key0
        c2 ^= key1
        np.bitwise_and(products, _LOW, out=lows)
    # Round 9: c1 and c2.
    np.multiply(c0, _M0, out=p0)
    np.multiply(c2, _M1, out=p1)
    np.right_shift(p0, _32, out=c2)
    c2 ^= c3
    c2 ^= _W1[8]
    np.bitwise_and(p1, _LOW, out=c1)
    # Round 10: c0, and c1 in the place of c2.
    np.multiply(c2, _M1, out=p1)
    np.right_shift(p1, _32, out=c0)
    c0 ^= c1
    c0 ^= k0[9]
    np.bitwise_and(p1, _LOW, out=c2)

    _box_muller(words, products.view(np.float64), out)


@lru_cache(maxsize=8)
def _first_product(size: int) -> tuple[Words, Words]:
    """High and low words of round 1's only product: they depend on the value's index alone."""
    product = np.arange(size, dtype=np.uint64) * _M1
    return product >> _32, product & _LOW


def _box_muller(
    words: Words, scratch: npt.NDArray[np.float64], out: npt.NDArray[np.float32]
) -> None:
    """The sine half of cuRAND's Box-Muller; u is never 0, so the logarithm is finite."""
    # Scaling by a power of two is exact: u and v are rounded as if computed from the words.
    u, v = np.multiply(words, 2.0**-32, out=scratch)
    u += 2.0**-33
    v *= 2 * np.pi
    v += np.pi * 2.0**-32
    np.log(u, out=u)
    u *= -2.0
    np.sqrt(u, out=u)
    np.sin(v, out=v)
    np.multiply(u, v, out=out)


def _as_array(seeds: Sequence[int] | npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    if isinstance(seeds, np.ndarray) and seeds.dtype == np.uint64:
        if seeds.ndim != 1:
            raise SeedError(f"seeds must be one-dimensional, not of shape {seeds.shape}")
        return seeds
    return np.array([check_seed(seed) for seed in seeds], dtype=np.uint64)
