"""What hypothesis draws for the tests of readers: JSON, edits of JSON, and damage to bytes."""

from __future__ import annotations

import copy
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONGER = "LAMAMBA_FAULTS" in os.environ
CASES = int(os.environ.get("LAMAMBA_FAULTS", "300"))

WORDS = ("", "x", "fp32", "image", "latent", "ort", "torch", "..", "/etc/passwd", "\0", "\ud800", "\u202e", "9" * 400)
NUMBERS = (0, 1, -1, 2, 4, 8, 1000, 2**31, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-300, 1e308, -1e39)
LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9)
)
JSON: st.SearchStrategy[Any] = st.recursive(
    LEAVES | st.sampled_from(WORDS) | st.sampled_from(NUMBERS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)


def cases(share: float = 1.0) -> settings:
    """The same cases every time, or with LAMAMBA_FAULTS others each time, as many as it says, times `share`."""
    return settings(
        max_examples=max(10, round(CASES * share)),
        derandomize=not LONGER,
        database=None,
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with one to three of its places set to something else, removed, or copied elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = value
        while True:
            keys = sorted(place) if isinstance(place, dict) else list(range(min(len(place), 3)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw(st.integers(0, 3)):
                place = inner
                continue
            action = draw(st.sampled_from(("set", "set", "set", "remove", "add")))
            if action == "set":
                place[key] = draw(JSON)
            elif action == "remove":
                del place[key]
            elif isinstance(place, dict):
                place[draw(st.text(max_size=9) | st.sampled_from(WORDS))] = copy.deepcopy(inner)
            else:
                place.append(copy.deepcopy(inner))
            break
    return value


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with some changed, cut out, put in or repeated."""
    value = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(value) - 1)))
        action = draw(st.sampled_from(("change", "change", "change", "cut", "end", "insert", "repeat")))
        if action == "change" and value:
            value[at] = draw(st.integers(0, 255) | st.sampled_from((0, 1, 0x7F, 0x80, 0xFF)))
        elif action == "cut":
            del value[at : at + draw(st.integers(1, 40))]
        elif action == "end":
            del value[at:]
        elif action == "insert":
            value[at:at] = draw(st.binary(min_size=1, max_size=20))
        else:
            value[at:at] = value[at : at + draw(st.integers(1, 40))]
    return bytes(value)
