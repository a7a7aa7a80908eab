"""Window attention as ONNX functions of standard operators: what runs where no native kernel is registered.

B batch, H W grid, C width, w window side, T = w*w tokens of a window, M windows of an image, S heads.

Two functions, as a map that is not shifted needs neither the copies of a cyclic shift nor a mask. Everything that
follows from the static H and W (mask, shapes, scale) folds to constants when a graph is loaded.
"""

from __future__ import annotations

import onnx

from lamamba.compile.onnx_scan import DOMAIN, parse_function

PLAIN, SHIFTED = "WindowAttention", "ShiftedWindowAttention"
ATTRIBUTES = {PLAIN: ("window",), SHIFTED: ("window", "shift")}

# The grid is that of one image: the shape of qkv as a whole would not fold, because the batch is free.
_GRID = """
    zero = Constant <value_int = 0> ()
    one = Constant <value_int = 1> ()
    axis_1 = Constant <value_ints = [1]> ()
    axis_2 = Constant <value_ints = [2]> ()
    axis_last = Constant <value_ints = [-1]> ()
    same = Constant <value_ints = [0]> ()
    rest = Constant <value_ints = [-1]> ()
    window_scalar = Constant <value_int: int = @window> ()
    w = Reshape (window_scalar, rest)
    image = Gather (qkv, zero)
    height = Shape <end = 1> (image)
    width = Shape <start = 1, end = 2> (image)
    rows = Div (height, w)
    columns = Div (width, w)
    windows = Mul (rows, columns)
    tokens = Mul (w, w)
    heads = Shape <end = 1> (bias)
    bias_like = CastLike (bias, qkv)
"""

# moved (B, H, W, 3C), up and left by `shift`; mask (M, 1, T, T) is -100 between regions that only the shift joined.
_SHIFT = """
    shift_scalar = Constant <value_int: int = @shift> ()
    s = Reshape (shift_scalar, rest)
    bottom = Slice (qkv, s, height, axis_1)
    top = Slice (qkv, same, s, axis_1)
    moved_up = Concat <axis = 1> (bottom, top)
    right = Slice (moved_up, s, width, axis_2)
    left = Slice (moved_up, same, s, axis_2)
    moved = Concat <axis = 2> (right, left)
    row_band = BAND_height
    column_band = BAND_width
    three = Constant <value_int = 3> ()
    row_code = Mul (row_band, three)
    row_code_wide = Unsqueeze (row_code, axis_last)
    region = Add (row_code_wide, column_band)
    region_shape = Concat <axis = 0> (rows, w, columns, w)
    region_split = Reshape (region, region_shape)
    region_windows = Transpose <perm = [0, 2, 1, 3]> (region_split)
    by_window = Concat <axis = 0> (windows, tokens)
    region_of = Reshape (region_windows, by_window)
    region_a = Unsqueeze (region_of, axis_last)
    region_b = Unsqueeze (region_of, axis_1)
    alike = Equal (region_a, region_b)
    apart = Not (alike)
    apart_real = Cast <to = 1> (apart)
    hundred = Constant <value_float = -100.0> ()
    mask_real = Mul (apart_real, hundred)
    mask_wide = Unsqueeze (mask_real, axis_1)
    mask = CastLike (mask_wide, qkv)
    added = Add (bias_like, mask)
"""

_BAND = """
    side_SIDE = Squeeze (SIDE)
    line_SIDE = Range (zero, side_SIDE, one)
    from_window_SIDE = Sub (SIDE, w)
    from_shift_SIDE = Sub (SIDE, s)
    in_window_SIDE = GreaterOrEqual (line_SIDE, from_window_SIDE)
    in_shift_SIDE = GreaterOrEqual (line_SIDE, from_shift_SIDE)
    in_window_int_SIDE = Cast <to = 7> (in_window_SIDE)
    in_shift_int_SIDE = Cast <to = 7> (in_shift_SIDE)
    NAME = Add (in_window_int_SIDE, in_shift_int_SIDE)
"""

_ATTENTION = """
    grid_shape = Concat <axis = 0> (same, rows, w, columns, w, rest)
    split = Reshape (moved, grid_shape)
    by_rows = Transpose <perm = [0, 1, 3, 2, 4, 5]> (split)
    window_shape = Concat <axis = 0> (same, windows, tokens, rest)
    by_windows = Reshape (by_rows, window_shape)
    q_row, k_row, v_row = Split <axis = 3, num_outputs = 3> (by_windows)
    head_shape = Concat <axis = 0> (same, windows, tokens, heads, rest)
    q_heads = Reshape (q_row, head_shape)
    k_heads = Reshape (k_row, head_shape)
    v_heads = Reshape (v_row, head_shape)
    q = Transpose <perm = [0, 1, 3, 2, 4]> (q_heads)
    k = Transpose <perm = [0, 1, 3, 4, 2]> (k_heads)
    v = Transpose <perm = [0, 1, 3, 2, 4]> (v_heads)
    channels3 = Shape <start = 2> (image)
    three_parts = Constant <value_ints = [3]> ()
    channels = Div (channels3, three_parts)
    head_width = Div (channels, heads)
    head_width_real = Cast <to = 1> (head_width)
    head_width_root = Sqrt (head_width_real)
    scale_real = Reciprocal (head_width_root)
    scale = CastLike (scale_real, qkv)
    q_scaled = Mul (q, scale)
    scores = MatMul (q_scaled, k)
    biased = Add (scores, added)
    weights = Softmax <axis = -1> (biased)
    y_heads = MatMul (weights, v)
    y_tokens = Transpose <perm = [0, 1, 3, 2, 4]> (y_heads)
    y_split_shape = Concat <axis = 0> (same, rows, columns, w, w, rest)
    y_split = Reshape (y_tokens, y_split_shape)
    y_by_rows = Transpose <perm = [0, 1, 3, 2, 4, 5]> (y_split)
    y_shape = Concat <axis = 0> (same, height, width, channels)
"""

_PLAIN_END = """
    y = Reshape (y_by_rows, y_shape)
"""

_SHIFTED_END = """
    y_moved = Reshape (y_by_rows, y_shape)
    from_bottom = Sub (height, s)
    from_right = Sub (width, s)
    y_last_rows = Slice (y_moved, from_bottom, height, axis_1)
    y_first_rows = Slice (y_moved, same, from_bottom, axis_1)
    y_down = Concat <axis = 1> (y_last_rows, y_first_rows)
    y_last_columns = Slice (y_down, from_right, width, axis_2)
    y_first_columns = Slice (y_down, same, from_right, axis_2)
    y = Concat <axis = 2> (y_last_columns, y_first_columns)
"""


def window_attention_function(name: str, opset: int = 20) -> onnx.FunctionProto:
    """`lamamba.ai::WindowAttention` or `::ShiftedWindowAttention` (qkv, bias) with attributes as in ATTRIBUTES.

    Arguments and result are those of `lamamba.attention.window_attention`, for any grid and a free batch; qkv may be
    float16 or float32. opset: of the standard operators, 18 or later; it must be the model's.
    """
    if name == SHIFTED:
        shift = _SHIFT
        for side, band in (("height", "row_band"), ("width", "column_band")):
            text = _BAND.replace("SIDE", side).replace("NAME", band)
            shift = shift.replace(f"    {band} = BAND_{side}\n", text)
        body = _GRID + shift + _ATTENTION + _SHIFTED_END
    else:
        body = (
            _GRID
            + _ATTENTION.replace("(moved,", "(qkv,").replace("(scores, added)", "(scores, bias_like)")
            + _PLAIN_END
        )
    return parse_function(
        f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'
        f"{name} <{', '.join(ATTRIBUTES[name])}> (qkv, bias) => (y) {{ {body} }}"
    )
