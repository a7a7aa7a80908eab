"""Parameters and multiply-accumulates of a configuration, part by part, from its numbers alone. No torch.

L tokens of a stage, C width, D inner channels, R dt rank, N state, T tokens of a window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from lamamba.config import STAGES, ModelConfig

PATHS = 4
SCAN_OPERATIONS = 9  # per channel, token and state: the convention of the Mamba authors for one path

Parts = dict[str, dict[str, int]]


def count(config: ModelConfig) -> Parts:
    """Parameters, multiply-accumulates of matrix products and convolutions, and scan operations, by part.

    One image, one evaluation of the network. The scan's elementwise work, 9 operations per path, channel, token and
    state, is kept apart under `scan`, as it is no matrix product. Element-wise work elsewhere is not counted.
    """
    parts: dict[str, Counter[str]] = {}
    for part, parameters, macs, scan in _entries(config):
        parts.setdefault(part, Counter()).update(parameters=parameters, macs=macs, scan=scan)
    return {part: dict(values) for part, values in parts.items()}


def totals(parts: Parts) -> dict[str, int]:
    """Sum over the parts."""
    return {key: sum(values[key] for values in parts.values()) for key in ("parameters", "macs", "scan")}


Entry = tuple[str, int, int, int]


def _entries(config: ModelConfig) -> Iterator[Entry]:
    e, p, cond = config.embed_dim, config.patch_size, config.condition_dim
    side = config.resolutions[0]
    tokens, pixels = side * side, config.input_size**2
    yield "embedding", p * p * config.in_channels * e + 3 * e + tokens * e, tokens * p * p * config.in_channels * e, 0
    embedder = 256 * cond + cond * cond
    yield "embedding", embedder + 2 * cond + (config.num_classes + 1) * cond, embedder, 0
    for i, width, side, depth, decoder in stages(config):
        project = decoder or width != cond
        for _ in range(depth):
            yield from _block(config, width, side, project)
        if not decoder and i < 2:
            out = config.widths[i + 1]
            yield "resolution", 8 * width + 4 * width * out, (side // 2) ** 2 * 4 * width * out, 0
        if decoder and i < 2:
            wide = config.widths[i + 1]
            yield "resolution", wide * 4 * width + 2 * width, (side // 2) ** 2 * wide * 4 * width, 0
    up, head = e * p * p * e, e * 2 * config.in_channels
    yield "head", up + 2 * e + head + 2 * config.in_channels, tokens * up + pixels * head, 0
    yield "head", cond * e + e + 2 * e * e + 2 * e, cond * e + 2 * e * e, 0


def stages(config: ModelConfig) -> Iterator[tuple[int, int, int, int, bool]]:
    """Index, width, side, blocks and whether it is a decoder stage, of every stage and the bottleneck."""
    for i in range(STAGES):
        yield i, config.widths[i], config.resolutions[i], config.depths[i], False
    yield STAGES - 1, config.widths[-1], config.resolutions[-1], config.bottleneck_depth, False
    for i in reversed(range(STAGES)):
        yield i, config.widths[i], config.resolutions[i], config.depths[i] + 1, True


def _block(config: ModelConfig, c: int, side: int, project: bool) -> Iterator[Entry]:
    tokens, d, r, n = side * side, config.d_inner(c), config.dt_rank(c), config.d_state
    modulation = 9 * c * c + (config.condition_dim * c if project else 0)
    yield "conditioning", modulation + 9 * c + (c if project else 0), modulation, 0

    linear = c * 2 * d + 9 * d + PATHS * (r + 2 * n) * d + PATHS * r * d + d * c
    other = PATHS * d + PATHS * d * n + PATHS * d + 2 * d + 2 * c
    yield "scan branch", linear + other, tokens * linear, SCAN_OPERATIONS * PATHS * tokens * d * n

    window = config.window(side) ** 2
    table = (2 * config.window(side) - 1) ** 2 * config.num_heads
    yield "window attention", 4 * c * c + 4 * c + table + 2 * c, tokens * (4 * c * c + 2 * window * c), 0

    hidden = int(config.mlp_ratio * c)
    yield "mlp", 2 * c * hidden + hidden + c + 2 * c, tokens * 2 * c * hidden, 0
