"""Philox and Box-Muller: published vectors, every convention of the counter, the distribution, and bad arguments."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lamamba.errors import InputError
from lamamba.runtimes.noise import box_muller, check_seed, normal, philox

TOP = 2**32 - 1
BIG = (100, 100, 100)
PUBLISHED = [  # Random123, kat_vectors, philox4x32 with 10 rounds: counter, key low, key high, words
    ((0, 0, 0, 0), 0, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((TOP, TOP, TOP, TOP), TOP, TOP, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        0xA4093822,
        0x299F31D0,
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def quad(counter: tuple[int, int, int, int], seed: int) -> np.ndarray:
    return box_muller(philox(np.array([counter], np.uint32), seed))


@pytest.mark.parametrize(("counter", "low", "high", "words"), PUBLISHED)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], low: int, high: int, words: tuple[int, ...]
) -> None:
    assert tuple(philox(np.array([counter], np.uint32), high << 32 | low)[0].tolist()) == words


def test_counters_are_independent_of_each_other() -> None:
    counters = np.array([counter for counter, *_ in PUBLISHED], np.uint32)
    together = philox(counters, 5)
    assert together.dtype == np.uint32
    assert all(np.array_equal(together[i], philox(counters[i : i + 1], 5)[0]) for i in range(3))


def test_words_of_the_counter() -> None:
    """Element e comes from counter (e div 4, draw, image, stream), and each word has its own place."""
    made = normal((3, 2, 2), seed=99, image=5, draw=7, stream=1).reshape(-1)
    for e in range(3):
        assert np.array_equal(made[4 * e : 4 * e + 4], quad((e, 7, 5, 1), 99))


def test_both_words_of_the_seed_count() -> None:
    low, high, both = (normal((1, 1, 4), seed=seed, image=0, draw=0) for seed in (3, 3 << 32, (3 << 32) + 3))
    assert not np.array_equal(low, high)
    assert not np.array_equal(low, both)
    assert not np.array_equal(high, both)


def test_box_muller_pairs_cosine_then_sine() -> None:
    words = [123456789, 987654321, 4000000000, 17]
    expected = []
    for w0, w1 in (words[:2], words[2:]):
        radius = math.sqrt(-2 * math.log((w0 + 1) / 2**32))
        angle = 2 * math.pi * (w1 + 1) / 2**32
        expected += [radius * math.cos(angle), radius * math.sin(angle)]
    got = box_muller(np.array([words], np.uint32))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, rtol=1.2e-7)


def test_the_ends_of_the_uniforms_are_finite() -> None:
    ends = box_muller(np.array([[0, TOP, TOP, 0]], np.uint32))
    assert ends[0] == np.float32(math.sqrt(64 * math.log(2)))  # u = 2**-32, cos(2 pi) = 1
    assert not ends[2:].any()  # u = 1


def test_an_odd_number_of_elements_is_a_beginning_of_more() -> None:
    more = normal((4, 3, 3), seed=1, image=2, draw=3).reshape(-1)
    for count in (1, 2, 3, 5, 35):
        assert np.array_equal(normal((1, 1, count), seed=1, image=2, draw=3).reshape(-1), more[:count])


def test_elements_run_over_channels_rows_columns() -> None:
    flat = normal((1, 1, 24), seed=8, image=0, draw=0).reshape(-1)
    shaped = normal((2, 3, 4), seed=8, image=0, draw=0)
    assert shaped[1, 2, 3] == flat[23]
    assert shaped[1, 0, 2] == flat[14]
    assert shaped[0, 1, 0] == flat[4]


def test_numbers_are_standard_normal() -> None:
    values = normal(BIG, seed=2024, image=0, draw=0).reshape(-1).astype(np.float64)
    count = len(values)
    assert abs(values.mean()) < 5 / math.sqrt(count)
    assert abs(values.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((values**4).mean() - 3) < 5 * math.sqrt(96 / count)
    grid = np.linspace(-3, 3, 25)
    expected = np.array([0.5 * (1 + math.erf(z / math.sqrt(2))) for z in grid])
    found = np.searchsorted(np.sort(values), grid) / count
    assert np.abs(found - expected).max() < 2.5 / math.sqrt(count)


@pytest.mark.parametrize(
    "other", [{"seed": 1}, {"seed": 1 << 32}, {"image": 1}, {"draw": 1}, {"stream": 1}], ids=lambda o: str(o)
)
def test_streams_are_uncorrelated(other: dict[str, int]) -> None:
    base = {"seed": 0, "image": 0, "draw": 0, "stream": 0}
    a, b = (normal(BIG, **arguments).reshape(-1).astype(np.float64) for arguments in (base, {**base, **other}))
    assert abs((a * b).mean()) < 5 / math.sqrt(len(a))


def test_neighbours_are_uncorrelated() -> None:
    values = normal(BIG, seed=0, image=0, draw=0).reshape(-1).astype(np.float64)
    for lag in (1, 2, 3, 4, 100):
        assert abs((values[lag:] * values[:-lag]).mean()) < 5 / math.sqrt(len(values))


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "1", None, True])
def test_impossible_seeds(seed: object) -> None:
    with pytest.raises(InputError, match="seed must be an integer between 0 and 18446744073709551615"):
        check_seed(seed)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="seed"):
        normal((1, 1, 1), seed=seed, image=0, draw=0)  # type: ignore[arg-type]


def test_the_largest_numbers_are_taken() -> None:
    assert np.isfinite(normal((1, 1, 4), seed=2**64 - 1, image=TOP, draw=TOP, stream=TOP)).all()
    assert np.array_equal(
        normal((1, 1, 4), seed=np.uint64(2**64 - 1), image=0, draw=0),  # type: ignore[arg-type]
        normal((1, 1, 4), seed=2**64 - 1, image=0, draw=0),
    )


@pytest.mark.parametrize("name", ["image", "draw", "stream"])
@pytest.mark.parametrize("value", [-1, 2**32])
def test_numbers_that_do_not_fit_their_word(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"{name} must be between 0 and 4294967295, got {value}"):
        normal((1, 1, 1), **{"seed": 0, "image": 0, "draw": 0, name: value})
