"""The seed contract: the paper's noise, whatever shares the batch."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.bundle import SEED_MAX, SeedError, latents

LOW = np.uint64(0xFFFFFFFF)
ZERO = np.uint64(0)

# torch.randn of a CUDA generator with seed 0 (facts/sid.md, section 9), computed in float32.
CUDA_SEED_0 = [
    -0.92466259,
    -0.42534415,
    -2.6438457,
    0.14518388,
    -0.12086647,
    -0.57972564,
    -0.62285122,
    -0.32838709,
    -1.07454231,
    -0.36314407,
    -1.67105067,
    2.26550497,
]

# Known answers of philox4x32 with 10 rounds from Random123: counter, key, output.
RANDOM123 = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    ),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def philox4x32(counter, key):
    """Philox4x32-10 as the paper defines it, 32-bit words in uint64."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0 = c0 * np.uint64(0xD2511F53)
        p1 = c2 * np.uint64(0xCD9E8D57)
        c0, c1 = (p1 >> np.uint64(32)) ^ c1 ^ k0, p1 & LOW
        c2, c3 = (p0 >> np.uint64(32)) ^ c3 ^ k1, p0 & LOW
        k0 = (k0 + np.uint64(0x9E3779B9)) & LOW
        k1 = (k1 + np.uint64(0xBB67AE85)) & LOW
    return c0, c1, c2, c3


def plain_latents(seeds, shape):
    """The contract in its plainest form, which `latents` must give to the bit."""
    index = np.arange(math.prod(shape), dtype=np.uint64)
    key = np.array(seeds, np.uint64)[:, None] & LOW
    word0, word1, _, _ = philox4x32((ZERO, ZERO, index, ZERO), (key, ZERO))
    u = word0 * 2.0**-32 + 2.0**-33
    v = word1 * (2 * np.pi * 2.0**-32) + np.pi * 2.0**-32
    normals = np.sqrt(-2.0 * np.log(u)) * np.sin(v)
    return normals.astype(np.float32).reshape(len(seeds), *shape)


def same_bits(a, b):
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def words(values: tuple[int, ...]) -> tuple[np.uint64, ...]:
    return tuple(np.uint64(value) for value in values)


@pytest.mark.parametrize(("counter", "key", "expected"), RANDOM123)
def test_the_block_function_gives_the_published_answers(counter, key, expected):
    assert tuple(map(int, philox4x32(words(counter), words(key)))) == expected


def test_seed_0_gives_the_noise_of_the_papers_sampler():
    noise = latents([0], (1, 3, 4))
    assert noise.dtype == np.float32
    assert noise.shape == (1, 1, 3, 4)
    # float32 on the GPU, float64 rounded once here: 1e-6 of the value, 2e-6 in the tails.
    np.testing.assert_allclose(noise.ravel(), CUDA_SEED_0, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (3, 256, 256)])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**32 + 7, SEED_MAX])
def test_a_seed_gives_what_torch_draws_on_a_card(seed, shape):
    """Up to the card's logarithms and sines, which are float32."""
    import torch

    generator = torch.Generator("cuda").manual_seed(seed % 2**32)
    drawn = torch.randn(shape, device="cuda", generator=generator).cpu().numpy()
    np.testing.assert_allclose(latents([seed], shape)[0], drawn, rtol=0, atol=5e-5)


@given(
    st.lists(st.integers(0, SEED_MAX), max_size=12),
    st.lists(st.integers(0, 40), min_size=1, max_size=3),
)
@example([0, 1, 2**32 - 1, 2**32, SEED_MAX], [1])
@example([3], [0, 2])
def test_the_noise_is_that_of_the_plain_form_to_the_bit(seeds, shape):
    assert same_bits(latents(seeds, shape), plain_latents(seeds, shape))


@pytest.mark.parametrize(
    ("count", "shape"),
    [
        (1, (1, 28, 28)),
        (64, (1, 28, 28)),  # several blocks of rows, the last one short
        (17, (3, 32, 32)),
        (3, (3, 64, 64)),
        (2, (3, 128, 128)),  # a row larger than a block
        (20_000, (1,)),
    ],
)
def test_the_noise_of_many_rows_is_that_of_the_plain_form_to_the_bit(count, shape):
    seeds = np.random.default_rng(count).integers(0, SEED_MAX, count, np.uint64, endpoint=True)
    assert same_bits(latents(seeds, shape), plain_latents(seeds, shape))


@given(st.lists(st.integers(0, SEED_MAX), min_size=1, max_size=8), st.data())
def test_a_row_depends_on_its_own_seed_only(seeds, data):
    row = data.draw(st.integers(0, len(seeds) - 1))
    together = latents(seeds, (3, 5, 7))
    alone = latents([seeds[row]], (3, 5, 7))
    assert np.array_equal(together[row], alone[0])


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_seeds_equal_modulo_2_to_the_32_give_the_same_noise(low, high):
    same = latents([low, low + 2**32 * high], (1, 4, 4))
    assert np.array_equal(same[0], same[1])


def test_an_array_of_seeds_is_taken_as_it_is():
    seeds = [0, 2**32 - 1, SEED_MAX]
    assert np.array_equal(latents(np.array(seeds, np.uint64), (2,)), latents(seeds, (2,)))


def test_the_noise_is_standard_normal_and_uncorrelated_between_seeds():
    noise = latents(range(64), (3, 32, 32)).reshape(64, -1).astype(np.float64)
    count = noise.size
    assert abs(noise.mean()) < 5 / np.sqrt(count)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / count)
    assert abs((noise**4).mean() - 3) < 5 * np.sqrt(96 / count)
    correlation = np.corrcoef(noise) - np.eye(64)
    assert np.abs(correlation).max() < 5 / np.sqrt(noise.shape[1])


def test_no_seeds_give_no_rows():
    assert latents([], (1, 2, 2)).shape == (0, 1, 2, 2)


@pytest.mark.parametrize("seed", [-1, SEED_MAX + 1, 1.0, "7", None, True])
def test_other_seeds_are_refused_with_the_range(seed):
    with pytest.raises(SeedError, match=f"0 to {SEED_MAX}"):
        latents([seed], (1, 2, 2))
