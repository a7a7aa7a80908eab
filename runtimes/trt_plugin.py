"""The cross scan as a TensorRT plugin whose engines hold the kernel itself: a quick-deploy plugin, implemented ahead of
time. For TensorRT from 10.9 on.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank.

TensorRT asks once for each scan of a network while it builds an engine: sizes and types in, PTX and launch out. An
engine built so runs without this file, without Python and without Triton. Attributes would not be kept in an engine, so
the plugin has none: everything follows from the shapes of its inputs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lamamba.runtimes.trt_kernels import INPUTS, NUMBERS, Kernel, choose, grid_of

NAME = "lamamba::CrossScan"


def register(trt: Any, plugin: Any, folder: Path, capability: int, batch: int, name: str = NAME) -> None:
    """Register the plugin with TensorRT, once a process.

    Args:
        trt, plugin: the modules `tensorrt` and `tensorrt.plugin`. folder: of the kernels.
        capability: of the device, 80 for 8.0. batch: the number of images that kernels are chosen for.
        name: of the plugin, with its namespace.
    """
    kinds = {trt.float32: "fp32", trt.float16: "fp16", trt.bfloat16: "bf16"}
    tensor: Any = plugin.TensorDesc

    # Types are those of the inputs, layouts linear: TensorRT's default where nothing is offered for tuning.
    def describe(x, proj, dt_weight, dt_bias, a, d):  # type: ignore[no-untyped-def]
        batch, height, width, channels = (x.shape_expr[i] for i in range(4))
        return x.like(), plugin.from_shape_expr((batch, height * width, channels), dtype=trt.float32)

    def compiled(x, proj, dt_weight, dt_bias, a, d, outputs, tactic):  # type: ignore[no-untyped-def]
        sizes = {
            "B": batch,
            **{letter: x.shape_expr[i + 1].constant_value() for i, letter in enumerate("HWD")},
            "R": dt_weight.shape_expr[2].constant_value(),
        }
        kernel = choose(folder, capability, kinds[x.dtype], a.shape_expr[2].constant_value(), sizes)
        return launch(plugin, kernel, {**sizes, "B": x.shape_expr[0]})

    # TensorRT reads these as types, not as text
    describe.__annotations__ = {**dict.fromkeys(INPUTS, tensor), "return": tuple[tensor, tensor]}
    compiled.__annotations__ = {
        **dict.fromkeys(INPUTS, tensor),
        "outputs": tuple[tensor],
        "tactic": int,
        "return": tuple[str | bytes, str | bytes, plugin.KernelLaunchParams, plugin.SymExprs],
    }
    plugin.register(name)(describe)
    plugin.aot_impl(name)(compiled)


def launch(plugin: Any, kernel: Kernel, sizes: dict[str, Any]) -> tuple[bytes, bytes, Any, Any]:
    """What TensorRT asks for: the kernel's name, its text, grid, block and memory, and its numbers (B, H, W, D, R).

    `sizes` holds whole numbers, and for B an expression of TensorRT.
    """
    parameters = plugin.KernelLaunchParams()
    parameters.grid_x, parameters.grid_y, parameters.grid_z = grid_of(kernel, sizes, plugin.cdiv)
    parameters.block_x = kernel.threads
    parameters.shared_mem = kernel.shared_bytes
    numbers = plugin.SymIntExprs.from_tuple([plugin.SymInt32(sizes[letter]) for letter in NUMBERS])
    return kernel.entry.encode(), kernel.ptx.encode(), parameters, numbers
