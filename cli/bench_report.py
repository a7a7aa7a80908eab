"""What `lamamba-bench` found, as tables and as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lamamba.errors import InputError

Facts = dict[str, Any]
Rows = list[tuple[str, ...]]


def lines(facts: Facts, markdown: bool) -> list[str]:
    """Machine and versions, times of steps, and cold starts."""
    ceilings = sorted({side["ceiling"] / 1e9 for side in facts["sides"].values() if side["ceiling"]})
    told = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    rates = ", ".join(f"{value:.3g}" for value in ceilings)
    measured = f"matrix product, measured: {rates or '?'} GMAC/s; {facts['rounds']} rounds"
    found = [f"{facts['processor']}; {told}", measured, ""]
    found += table(step_rows(facts), markdown)
    if facts["cold"]:
        found += ["", *table(cold_rows(facts), markdown)]
    return found


def step_rows(facts: Facts) -> Rows:
    """Headings, then a row a side and batch; `of ceiling` counts matrix products and convolutions alone."""
    peers = sorted({facts["sides"][label]["name"] for label in facts["peers"].values()})
    ratio = (f"ratio to {peers[0]}",) if peers else ()
    headings = ("unguided step", "batch", "tokens", "ms", "10 to 90 %", *ratio, "images/s", "GMAC", "of ceiling")
    rows: Rows = [headings]
    for row in facts["rows"]:
        side = facts["sides"][row["side"]]
        cells = [row["side"], str(row["batch"]), str(side["tokens"]), _number(row["median"])]
        cells.append(f"{_number(row['low'])} to {_number(row['high'])}")
        if peers:
            cells.append("" if row["ratio"] is None else f"{row['ratio']:.3f}")
        macs = side["macs"] * row["batch"] / 1e9
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        cells += [_number(1e3 * row["batch"] / row["median"]), _number(macs), share]
        rows.append(tuple(cells))
    return rows


def cold_rows(facts: Facts) -> Rows:
    """Headings, then a row a side: a process that starts, loads and makes one picture."""
    headings = ("cold start", "import, s", "load, s", "picture, s", "steps", "peak, MB", "GPU, MB")
    rows: Rows = [headings]
    for label, cold in facts["cold"].items():
        seconds = (_number(cold[key]) for key in ("import_s", "load_s", "picture_s"))
        memory = ("" if cold[key] is None else f"{cold[key]:.0f}" for key in ("peak_mb", "gpu_mb"))
        rows.append((label, *seconds, str(facts["sides"][label]["steps"]), *memory))
    return rows


def table(rows: Rows, markdown: bool) -> list[str]:
    """A table with columns as wide as their widest cell, or in Markdown."""
    if markdown:
        ruled = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
        return [f"| {' | '.join(cells)} |" for cells in ruled]
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    padded = ([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])] for cells in rows)
    return ["  ".join(cells).rstrip() for cells in padded]


def _number(value: float) -> str:
    """Three digits that matter, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def draw(facts: Facts, path: Path) -> None:
    """Times of a step against batch, and times of an image against tokens, each side with its spread.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for label in facts["sides"]:
        rows = [row for row in facts["rows"] if row["side"] == label]
        _line(left, [row["batch"] for row in rows], rows, [1.0] * len(rows), label)
    for name, rows in _series(facts).items():
        tokens = [facts["sides"][row["side"]]["tokens"] for row in rows]
        _line(right, tokens, rows, [1 / row["batch"] for row in rows], name)
    left.set(xlabel="batch", ylabel="ms a step", xscale="log", yscale="log", title=facts["processor"])
    right.set(xlabel="tokens of the first stage", ylabel="ms an image", xscale="log", yscale="log")
    _ticks(left, {row["batch"] for row in facts["rows"]})
    _ticks(right, {side["tokens"] for side in facts["sides"].values()})
    for axes in (left, right):
        axes.grid(True, which="both", alpha=0.3)
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
    finally:
        pyplot.close(figure)


def _ticks(axes: Any, values: set[int]) -> None:
    """Ticks of the horizontal axis where there are values, and plain numbers on both."""
    from matplotlib.ticker import FuncFormatter, NullLocator

    plain = FuncFormatter(lambda value, _: f"{value:g}")
    axes.set_xticks(sorted(values), [str(value) for value in sorted(values)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(plain)


def _line(axes: Any, x: Sequence[float], rows: Sequence[Facts], scales: Sequence[float], label: str) -> None:
    y = [row["median"] * scale for row, scale in zip(rows, scales, strict=True)]
    below = [(row["median"] - row["low"]) * scale for row, scale in zip(rows, scales, strict=True)]
    above = [(row["high"] - row["median"]) * scale for row, scale in zip(rows, scales, strict=True)]
    axes.errorbar(x, y, yerr=(below, above), marker="o", capsize=3, label=label)


def _series(facts: Facts) -> dict[str, list[Facts]]:
    """Rows of the largest batch by what differs in size of the picture only, the fewest tokens first."""
    largest = max(row["batch"] for row in facts["rows"])
    found: dict[str, list[Facts]] = {}
    for row in sorted(facts["rows"], key=lambda row: facts["sides"][row["side"]]["tokens"]):  # type: ignore[no-any-return]
        if row["batch"] == largest:
            found.setdefault(f"{row['side'].replace('-512', '')}, batch {largest}", []).append(row)
    return found
