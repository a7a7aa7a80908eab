"""Runs saved Core ML packages on the CPU with torch, on any machine: proves graph and weights, not Apple's kernels."""

from lamamba.compile.mil.program import Program, load_package

__all__ = ["Program", "load_package"]
