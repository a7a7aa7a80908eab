"""What the programs on a CPU share with `lamamba-bench`: alternatives timed in turn, and the processor's name."""

from __future__ import annotations

from lamamba.runtimes.timing import interleaved, processor

__all__ = ["interleaved", "processor"]
