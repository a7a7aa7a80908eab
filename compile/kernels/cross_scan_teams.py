"""The cross scan on CUDA devices in half precision, for maps whose sums fit shared memory: `cuda/cross_scan.cu`.

B batch, H W grid, D inner channels, K = 4 snake paths, R dt rank. The kernel is compiled ahead of time and launched by
the native library; here is which calls it takes, and the call.
"""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from lamamba import native
from lamamba.errors import InputError
from lamamba.native import cuda

TYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
WHOLE = (8, 8)  # the map that is one band
MAPS = (WHOLE, (16, 16), (16, 32), (32, 16), (32, 32), (16, 64), (64, 16))  # H, W
CHANNELS = 16  # of a team
TEAMS = 3  # of a block
THREADS = 128 * TEAMS
SUM_BYTES = 4 * CHANNELS  # of a token and team
ALIGNMENT = 16  # bytes, of what is read at once
LEAST = (8, 0)  # compute capability: the first with products of bfloat16
COLUMNS = {16: 0, 32: 0, 48: 0, 64: 32, 96: 64}  # of proj that a kernel reads, and the least R it takes


def columns(rank: int) -> int | None:
    """How many columns of proj hold a path's R + 2 wherever it begins; None where there is no kernel for R."""
    needed = max(path * (rank + 2) % 8 for path in range(4)) + rank + 2
    size = next((size for size in COLUMNS if size >= needed), None)
    return size if size and rank % 2 == 0 and rank >= COLUMNS[size] else None


def suits(x: Tensor, rank: int, state: int) -> bool:
    """Whether the kernel takes a call with x (B, H, W, D), R and N, and the native library has it."""
    _, height, width, channels = x.shape
    fits = (height, width) in MAPS and channels % CHANNELS == 0 and state == 1 and columns(rank) is not None
    return fits and x.dtype in TYPES and _at_hand()


def reaches(x: Tensor, proj: Tensor, *parameters: Tensor) -> bool:
    """Whether the kernel can read these: all on one device that it is compiled for, proj in the type of x."""
    together = all(value.device == x.device for value in (proj, *parameters))
    return together and proj.dtype == x.dtype and _runs_on(x.device)


def forward(x: Tensor, proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, a: Tensor, d: Tensor) -> Tensor:
    """`lamamba.scan.cross_scan` for a call that `suits` and `reaches`; dt_weight is rounded to the type of x.

    Args:
        x: (B, H, W, D), float16 or bfloat16; proj: (B, H, W, K*(R+2)) in the same type.
        dt_weight: (K, D, R); dt_bias: (K, D); a: (K, D, 1); d: (K, D); float32.

    Raises:
        RuntimeError: the driver refuses the launch.
    """
    inputs = [aligned(value) for value in (x, proj, dt_weight, dt_bias, a, d)]
    y = torch.empty_like(inputs[0])
    if x.numel() > 0:
        sizes = native.Sizes(*x.shape, dt_weight.shape[2], 1)
        with torch.cuda.device_of(x):
            cuda.enter(x.data_ptr())
            # Where a block has too little shared memory for the map, the library takes another kernel.
            scratch = torch.empty(cuda.scratch_bytes(sizes, TYPES[x.dtype]), dtype=torch.uint8, device=x.device)
            addresses = [value.data_ptr() for value in (*inputs, y)]
            stream = torch.cuda.current_stream(x.device).cuda_stream
            cuda.launch(sizes, TYPES[x.dtype], addresses, scratch.data_ptr(), stream)
    return y


def aligned(value: Tensor) -> Tensor:
    """The tensor, or a copy where it is not dense or, a piece of another one, does not begin where kernels read it."""
    dense = value.contiguous()
    return dense if dense.data_ptr() % ALIGNMENT == 0 else dense.clone()


@functools.cache
def _runs_on(device: torch.device) -> bool:
    """torch calls AMD's devices cuda too."""
    return (
        device.type == "cuda" and torch.version.cuda is not None and torch.cuda.get_device_capability(device) >= LEAST
    )


@functools.cache
def _at_hand() -> bool:
    """Whether the native library has these kernels, which Triton's beside them do not replace."""
    try:
        if not native.available():
            return False
        cuda.add_kernels()  # of all packs, in the order of their precedence
        return cuda.add_kernels(native.PATH.with_name(cuda.FOLDERS[0])) > 0
    except InputError as error:
        warnings.warn(f"{error}; Triton's kernels take their place", RuntimeWarning, stacklevel=2)
        return False
