"""The noise of a picture: counter-based Philox 4x32-10 and Box-Muller, a function of (seed, image, draw) alone.

Normative description with test vectors: docs/bundle.md, section Noise.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lamamba.errors import InputError

MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(counter: NDArray[np.uint32], seed: int) -> NDArray[np.uint32]:
    """Philox 4x32-10 (Salmon et al., SC'11): counters (n, 4) to random words (n, 4).

    The key is the low, then the high word of the 64-bit seed.
    """
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    key = [seed & MASK, seed >> 32 & MASK]
    for _ in range(ROUNDS):
        p0, p1 = MULTIPLIERS[0] * c0, MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            p1 >> np.uint64(32) ^ c1 ^ np.uint64(key[0]),
            p1 & np.uint64(MASK),
            p0 >> np.uint64(32) ^ c3 ^ np.uint64(key[1]),
            p0 & np.uint64(MASK),
        )
        key = [(key[0] + WEYL[0]) & MASK, (key[1] + WEYL[1]) & MASK]
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def box_muller(words: NDArray[np.uint32]) -> NDArray[np.float32]:
    """Random words (n, 4) to standard normal numbers (4n,), float32, computed in float64."""
    u = (words.astype(np.float64) + 1.0) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(u[:, 0::2]))
    angle = 2.0 * math.pi * u[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return pairs.reshape(-1).astype(np.float32)


def normal(shape: tuple[int, ...], *, seed: int, image: int, draw: int, stream: int = 0) -> NDArray[np.float32]:
    """Standard normal noise of one image, float32 of `shape` (C, H, W).

    Args:
        seed: 64 bits, 0 .. 2**64 - 1; image, draw, stream: 32 bits each. Draw 0 is the initial x, draw i + 1 the noise
            of row i; stream 0 is sampling.

    Raises:
        InputError: a number does not fit its width.
    """
    check_seed(seed)
    for name, value in (("image", image), ("draw", draw), ("stream", stream)):
        if not 0 <= value <= MASK:
            raise InputError(f"{name} must be between 0 and {MASK}, got {value}")
    size = math.prod(shape)
    counter = np.empty(((size + 3) // 4, 4), np.uint32)
    counter[:, 0] = np.arange(len(counter), dtype=np.uint32)
    counter[:, 1:] = (draw, image, stream)
    return box_muller(philox(counter, seed))[:size].reshape(shape)


def check_seed(seed: int) -> None:
    """Raise InputError unless the seed is an integer of 64 bits."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise InputError(f"seed must be an integer between 0 and {2**64 - 1}, got {seed!r}")
