"""The cross scan as an ONNX function of standard operators: what runs where no native kernel is registered.

B batch, H W grid, L = H*W tokens, D inner channels, K = 4 paths, N state, R dt rank.

Everything but the recurrence is computed for all tokens at once, in raster order, as (K, L, N, B, D): tokens lead, so
that what one step needs lies together. Two gathers bring decay and drive into path order, one brings the states back.
All indices follow from the static H and W, so they fold to constants. `benchmarks/scan_bodies.py` compares the bodies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser

from lamamba.compile.onnx_scan_bodies import SCAN, WIDE_SCAN, blocked_states
from lamamba.errors import InputError

DOMAIN = "lamamba.ai"
NAME = "CrossScan"
PARAMETERS = ("dt_weight", "dt_bias", "a", "d")
WIDE = 8  # the state size from which the body "wide_scan" is faster
IR_VERSION = 9

_CONSTANTS = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis_0 = Constant <value_ints = [0]> ()
    axis_1 = Constant <value_ints = [1]> ()
    axis_last = Constant <value_ints = [-1]> ()
    axes_1_2 = Constant <value_ints = [1, 2]> ()
    axes_1_3 = Constant <value_ints = [1, 3]> ()
    same = Constant <value_ints = [0]> ()
    single = Constant <value_ints = [1]> ()
    pair = Constant <value_ints = [2]> ()
    four = Constant <value_ints = [4]> ()
    rest = Constant <value_ints = [-1]> ()
"""

# order (L, K): row of (K*L) that holds the l-th token of path k; back (L, K): its inverse, where token l went.
# The grid is that of one image: the shape of x as a whole would not fold, because the batch is free.
_PATHS = """
    image = Gather (x, zero)
    height = Shape <end = 1> (image)
    width = Shape <start = 1, end = 2> (image)
    tokens = Mul (height, width)
    token_count = Squeeze (tokens)
    token = Range (zero, token_count, one)
    last_row = Sub (height, single)
    last_column = Sub (width, single)
    line = Div (token, width)
    line_from_bottom = Sub (last_row, line)
    along = Mod (token, width)
    against = Sub (last_column, along)
    line_parity = Mod (line, pair)
    line_is_odd = Cast <to = 9> (line_parity)
    column = Where (line_is_odd, against, along)
    row_start = Mul (line, width)
    row_start_from_bottom = Mul (line_from_bottom, width)
    path_0 = Add (row_start, column)
    path_1 = Add (row_start_from_bottom, column)
    upright = Div (token, height)
    upright_from_right = Sub (last_column, upright)
    down = Mod (token, height)
    up = Sub (last_row, down)
    upright_parity = Mod (upright, pair)
    upright_is_odd = Cast <to = 9> (upright_parity)
    row = Where (upright_is_odd, down, up)
    start_of_row = Mul (row, width)
    path_2 = Add (start_of_row, upright)
    path_3 = Add (start_of_row, upright_from_right)
    per_path = Concat <axis = 0> (four, tokens)
    rows = Mul (four, tokens)
    paths_in_line = Concat <axis = 0> (path_0, path_1, path_2, path_3)
    paths = Reshape (paths_in_line, per_path)
    path_number = Constant <value_ints = [0, 1, 2, 3]> ()
    path_start = Mul (path_number, tokens)
    paths_by_token = Transpose (paths)
    order = Add (paths_by_token, path_start)
    order_in_line = Reshape (order, rest)
    rows_scalar = Squeeze (rows)
    row_number = Range (zero, rows_scalar, one)
    back_in_line = ScatterElements (order_in_line, order_in_line, row_number)
    back_by_path = Reshape (back_in_line, per_path)
    back = Transpose (back_by_path)
"""

# raw (K, L, 1, B, D), delta before softplus. The bias is one more row of the weight: a small pad saves a large Add.
# The pads are a tensor, as ONNX Runtime up to 1.23 refuses pads given as value_ints.
_RAW = """
    x_real = Cast <to = 1> (x)
    proj_real = Cast <to = 1> (proj)
    dt_weight_real = Cast <to = 1> (dt_weight)
    dt_bias_real = Cast <to = 1> (dt_bias)
    a_real = Cast <to = 1> (a)
    d_real = Cast <to = 1> (d)
    rank = Shape <start = 2> (dt_weight)
    channels = Shape <start = 1, end = 2> (dt_weight)
    state = Shape <start = 2> (a)
    proj_shape = Concat <axis = 0> (same, tokens, four, rest)
    proj_split = Reshape (proj_real, proj_shape)
    proj_by_path = Transpose <perm = [2, 1, 0, 3]> (proj_split)
    sizes = Concat <axis = 0> (rank, state, state)
    dt, b_last, c_last = Split <axis = 3> (proj_by_path, sizes)
    dt_shape = Concat <axis = 0> (four, rest, rank)
    dt_rows = Reshape (dt, dt_shape)
    one_more = Constant <value = int64[6] {0, 0, 0, 0, 0, 1}> ()
    one_real = Constant <value_float = 1.0> ()
    dt_and_one = Pad (dt_rows, one_more, one_real)
    dt_weight_t = Transpose <perm = [0, 2, 1]> (dt_weight_real)
    dt_bias_row = Unsqueeze (dt_bias_real, axis_1)
    weight_and_bias = Concat <axis = 1> (dt_weight_t, dt_bias_row)
    raw_rows = MatMul (dt_and_one, weight_and_bias)
    raw_shape = Concat <axis = 0> (four, tokens, single, rest, channels)
    raw = Reshape (raw_rows, raw_shape)
"""

# softplus(v) = relu(v) + log1p(e), e = exp(-|v|). log1p(e) = 2 atanh(e / (e + 2)) is odd in t = r / (1/e + 1/2); with
# this r its minimax polynomial is monic. Exact to 2e-7 relative to the smallest delta, which log(1 + e) is not.
_SOFTPLUS = """
    half = Constant <value_float = 0.5> ()
    r = Constant <value_float = 0.4289920129796776> ()
    p_0 = Constant <value_float = 2.3310453463359515> ()
    p_1 = Constant <value_float = 1.0556791444377938> ()
    p_2 = Constant <value_float = 0.8514985659725834> ()
    magnitude = Abs (raw)
    inverse_e = Exp (magnitude)
    inverse_e_half = Add (inverse_e, half)
    t = Div (r, inverse_e_half)
    t_2 = Mul (t, t)
    horner_2 = Add (t_2, p_2)
    horner_2t = Mul (horner_2, t_2)
    horner_1 = Add (horner_2t, p_1)
    horner_1t = Mul (horner_1, t_2)
    horner_0 = Add (horner_1t, p_0)
    log1p_e = Mul (horner_0, t)
    ramp = Relu (raw)
    delta = Add (ramp, log1p_e)
"""

# delta_x (K, L, 1, B, D); a_wide (K, 1, N, 1, D); b (K, L, N, B, 1).
_INPUTS = """
    x_shape = Concat <axis = 0> (same, tokens, channels)
    x_in_line = Reshape (x_real, x_shape)
    x_rows = Transpose <perm = [1, 0, 2]> (x_in_line)
    x_wide = Unsqueeze (x_rows, axis_1)
    delta_x = Mul (delta, x_wide)
    a_by_state = Transpose <perm = [0, 2, 1]> (a_real)
    a_wide = Unsqueeze (a_by_state, axes_1_3)
    b_by_state = Transpose <perm = [0, 1, 3, 2]> (b_last)
    b = Unsqueeze (b_by_state, axis_last)
"""

_DECAY_AND_DRIVE = """
    exponent = Mul (delta, a_wide)
    decay_raster = Exp (exponent)
    drive_raster = Mul (delta_x, b)
    state_rows = Concat <axis = 0> (rows, state, rest, channels)
    decay_rows = Reshape (decay_raster, state_rows)
    drive_rows = Reshape (drive_raster, state_rows)
"""

# y_l = sum over paths and states of c h, in raster order; y_rows (L, B, D).
_READ = """
    c_by_state = Transpose <perm = [1, 0, 3, 2]> (c_last)
    c = Unsqueeze (c_by_state, axis_last)
    states_raster = Gather (states_rows, back)
    read = Mul (c, states_raster)
    y_rows = ReduceSum <keepdims = 0> (read, axes_1_2)
"""

_SKIP = """
    d_sum = ReduceSum <keepdims = 0> (d_real, axis_0)
    skip = Mul (x_rows, d_sum)
    y_and_skip = Add (y_rows, skip)
    y_in_line = Transpose <perm = [1, 0, 2]> (y_and_skip)
    y_shape = Concat <axis = 0> (same, height, width, channels)
    y_real = Reshape (y_in_line, y_shape)
    y = CastLike (y_real, x)
"""

_BODIES = {
    "scan": _DECAY_AND_DRIVE + SCAN + _READ,
    "wide_scan": WIDE_SCAN,
    "blocked": _DECAY_AND_DRIVE + blocked_states() + _READ.replace("back)", "back_blocked)"),
}


def cross_scan_function(opset: int = 20, body: str = "scan") -> onnx.FunctionProto:
    """`lamamba.ai::CrossScan` for any grid, D, R, N and free batch: arguments and result of `lamamba.scan.cross_scan`.

    Args:
        opset: of the standard operators, 17 or later; it must be the model's.
        body: "scan", an ONNX Scan over tokens; "wide_scan", the same for N of 8 and more; "blocked", neither Scan nor
            Loop, for CUDA graphs and TensorRT, up to 4096 tokens (more fail at a Reshape).

    Inputs may be float16 or float32; the state is float32. Raises InputError for another body or an older opset.
    """
    if body not in _BODIES:
        raise InputError(f"unknown body {body!r} of the scan; expected one of {', '.join(_BODIES)}")
    if opset < 17:
        raise InputError(f"the scan's function needs opset 17 or later, got {opset}")
    return _parse(_text(body), opset)


def parse_function(text: str) -> onnx.FunctionProto:
    """A function from its text. Its nodes are called after their first outputs: inlined without names, some nodes that
    ONNX Runtime 1.20 and 1.21 make of them get the same one, and the graph is refused.
    """
    function = parser.parse_function(text)
    for node in function.node:
        node.name = node.output[0]
    return function


def body_for(d_state: int) -> str:
    """The faster body for a state size (benchmarks/README.md, portable scan bodies)."""
    return "wide_scan" if d_state >= WIDE else "scan"


def one_node_model(scan: Mapping[str, NDArray[Any]], body: str, opset: int = 20) -> onnx.ModelProto:
    """A graph of one `CrossScan` node: x and proj are inputs with a free batch, the parameters constants.

    Args:
        scan: the arguments of `lamamba.scan.cross_scan` by name; of x and proj only type and shape matter.
        body, opset: see `cross_scan_function`.
    """

    def value(name: str, like: NDArray[Any]) -> onnx.ValueInfoProto:
        kind = helper.np_dtype_to_tensor_dtype(like.dtype)
        return helper.make_tensor_value_info(name, kind, ["batch", *like.shape[1:]])

    graph = helper.make_graph(
        [helper.make_node(NAME, ["x", "proj", *PARAMETERS], ["y"], domain=DOMAIN)],
        "one_node",
        [value("x", scan["x"]), value("proj", scan["proj"])],
        [value("y", scan["x"])],
        [numpy_helper.from_array(scan[name], name) for name in PARAMETERS],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid(DOMAIN, 1)]
    functions = [cross_scan_function(opset, body)]
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=IR_VERSION)


def _text(body: str) -> str:
    return _CONSTANTS + _PATHS + _RAW + _SOFTPLUS + _INPUTS + _BODIES[body] + _SKIP


def _parse(text: str, opset: int) -> onnx.FunctionProto:
    return parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{NAME} (x, proj, dt_weight, dt_bias, a, d) => (y) {{ {text} }}"
    )
