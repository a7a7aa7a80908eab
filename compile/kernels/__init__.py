"""Kernels of the hot operators, one source file for each kind of processor."""
