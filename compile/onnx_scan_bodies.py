"""The recurrence of the portable cross scan as text for `onnx_scan`, three ways: Scan, Scan for wide states, chunks.

B batch, L tokens, D inner channels, K = 4 paths, N state. The texts read order, back (L, K) and decay_rows, drive_rows
(K*L, N, B, D); the wide one instead delta, delta_x (K, L, 1, B, D), a_wide (K, 1, N, 1, D), b_by_state (K, L, N, B).
"""

from __future__ import annotations

CHUNK = 8
LEVELS = 4
MAX_TOKENS = CHUNK**LEVELS

# states_rows (L*K, N, B, D), rows in the order of `order`.
SCAN = """
    decay = Gather (decay_rows, order)
    drive = Gather (drive_rows, order)
    drive_first = Gather (drive, zero)
    initial = Sub (drive_first, drive_first)
    last, states = Scan <num_scan_inputs = 2, body = step (h, decay_l, drive_l) => (h_next, h_l) {
        h_kept = Mul (h, decay_l)
        h_next = Add (h_kept, drive_l)
        h_l = Identity (h_next)
    }> (initial, decay, drive)
    states_rows = Reshape (states, state_rows)
"""

# The same with all that grows with N inside the step, where it stays in the cache; y_rows (L, B, D).
WIDE_SCAN = """
    token_rows = Concat <axis = 0> (rows, single, rest, channels)
    number_rows = Concat <axis = 0> (rows, state, rest, single)
    c_by_state = Transpose <perm = [0, 1, 3, 2]> (c_last)
    delta_rows = Reshape (delta, token_rows)
    delta_x_rows = Reshape (delta_x, token_rows)
    b_rows = Reshape (b_by_state, number_rows)
    c_rows = Reshape (c_by_state, number_rows)
    delta_path = Gather (delta_rows, order)
    delta_x_path = Gather (delta_x_rows, order)
    b_path = Gather (b_rows, order)
    c_path = Gather (c_rows, order)
    a_step = Squeeze (a_wide, axis_1)
    delta_first = Gather (delta_path, zero)
    exponent_first = Mul (delta_first, a_step)
    initial = Sub (exponent_first, exponent_first)
    last, reads = Scan <num_scan_inputs = 4, body = step (h, delta_l, delta_x_l, b_l, c_l) => (h_next, y_l) {
        exponent = Mul (delta_l, a_step)
        decay = Exp (exponent)
        drive = Mul (delta_x_l, b_l)
        h_kept = Mul (h, decay)
        h_next = Add (h_kept, drive)
        read = Mul (h_next, c_l)
        y_l = ReduceSum <keepdims = 0> (read, axis_1)
    }> (initial, delta_path, delta_x_path, b_path, c_path)
    reads_shape = Concat <axis = 0> (rows, rest, channels)
    reads_rows = Reshape (reads, reads_shape)
    reads_raster = Gather (reads_rows, back)
    y_rows = ReduceSum <keepdims = 0> (reads_raster, axis_1)
"""


def blocked_states() -> str:
    """The recurrence without Scan or Loop, up to MAX_TOKENS tokens: states_rows, and back_blocked to read them by.

    h_l = decay_l h_(l-1) + drive_l is associative: a chunk of 8 tokens is such a step too, whose decay is the product
    and whose drive is the state that it reaches from zero; so is a chunk of chunks. Level v has n_v elements (n_0 = L)
    in C_v = ceil(n_v / 8) chunks, and n_(v+1) = C_v. Sizes enter as constants computed from L: one text for every grid.
    Token l of path k is row ((l mod 8) C_0 + l div 8) K + k of the result.
    """
    levels = range(LEVELS)
    return (
        f"""
    chunk = Constant <value_ints = [{CHUNK}]> ()
    chunk_less_1 = Constant <value_ints = [{CHUNK - 1}]> ()
    ones = Constant <value_ints = [{", ".join("1" * CHUNK)}]> ()
    in_column = Constant <value_ints = [-1, 1]> ()
    one_chunk = Constant <value_ints = [{CHUNK}, 1]> ()
    step = Constant <value_ints = [{", ".join(map(str, range(CHUNK)))}]> ()
    step_column = Reshape (step, in_column)
    n_0 = Identity (tokens)
"""
        + "".join(_chunk_index(v) + _elements(v) + _within_chunks(v) for v in levels)
        + f"    states_{LEVELS - 1} = Identity (h_{LEVELS - 1})\n"
        + "".join(_carry(v) for v in reversed(levels[:-1]))
        + """
    back_token = Div (back, four)
    back_path = Mod (back, four)
    back_step = Mod (back_token, chunk)
    back_chunk = Div (back_token, chunk)
    back_step_start = Mul (back_step, chunks_0)
    back_place = Add (back_step_start, back_chunk)
    back_place_start = Mul (back_place, four)
    back_blocked = Add (back_place_start, back_path)
    padded_rows = Mul (padded_0, four)
    blocked_rows = Concat <axis = 0> (padded_rows, state, rest, channels)
    states_rows = Reshape (states_0, blocked_rows)
"""
    )


def _chunk_index(v: int) -> str:
    """element_v (8, C_v): which element is step t of chunk c.

    Steps past the end repeat the last element: nothing after an element changes its state.
    """
    top = v == LEVELS - 1
    return f"""
    n_{v}_and_7 = Add (n_{v}, chunk_less_1)
    chunks_{v} = Div (n_{v}_and_7, chunk)
    chunks_{v}_scalar = Squeeze (chunks_{v})
    chunk_number_{v} = Range (zero, chunks_{v}_scalar, one)
    chunk_start_{v} = Mul (chunk_number_{v}, chunk)
    unclipped_{v} = Add (chunk_start_{v}, step_column)
    last_{v} = Sub (n_{v}, single)
    clipped_{v} = Min (unclipped_{v}, last_{v})
    element_{v} = {f"Reshape (clipped_{v}, one_chunk)" if top else f"Identity (clipped_{v})"}
    padded_{v} = Mul (chunks_{v}, chunk)
    n_{v + 1} = Identity (chunks_{v})
"""


def _elements(v: int) -> str:
    """decay_v, drive_v (8, C_v, K, N, B, D): of tokens, or of the chunks of the level below."""
    if v == 0:
        return """
    row_0 = Gather (order, element_0)
    decay_0 = Gather (decay_rows, row_0)
    drive_0 = Gather (drive_rows, row_0)
"""
    return f"""
    decay_{v} = Gather (chunk_decay_{v - 1}, element_{v})
    drive_{v} = Gather (chunk_drive_{v - 1}, element_{v})
"""


def _within_chunks(v: int) -> str:
    """h_v, passed_v (8, C_v, K, N, B, D): states from zero and product of decays, from the start of each chunk."""
    steps = range(CHUNK)
    last = CHUNK - 1
    lines = [
        f"{', '.join(f'decay_{v}_{t}' for t in steps)} = Split <axis = 0> (decay_{v}, ones)",
        f"{', '.join(f'drive_{v}_{t}' for t in steps)} = Split <axis = 0> (drive_{v}, ones)",
        f"h_{v}_0 = Identity (drive_{v}_0)",
        f"passed_{v}_0 = Identity (decay_{v}_0)",
    ]
    for t in steps[1:]:
        lines += [
            f"h_{v}_{t}_kept = Mul (h_{v}_{t - 1}, decay_{v}_{t})",
            f"h_{v}_{t} = Add (h_{v}_{t}_kept, drive_{v}_{t})",
            f"passed_{v}_{t} = Mul (passed_{v}_{t - 1}, decay_{v}_{t})",
        ]
    lines += [
        f"h_{v} = Concat <axis = 0> ({', '.join(f'h_{v}_{t}' for t in steps)})",
        f"passed_{v} = Concat <axis = 0> ({', '.join(f'passed_{v}_{t}' for t in steps)})",
        f"chunk_drive_{v} = Squeeze (h_{v}_{last}, axis_0)",
        f"chunk_decay_{v} = Squeeze (passed_{v}_{last}, axis_0)",
    ]
    return "".join(f"    {line}\n" for line in lines)


def _carry(v: int) -> str:
    """states_v = h_v + passed_v carry_v, where carry_v (C_v, K, N, B, D) is the state before each chunk: that which
    level v + 1 has at the previous one, and zero before the first."""
    w = v + 1
    return f"""
    before_shape_{v} = Concat <axis = 0> (padded_{w}, four, state, rest, channels)
    reached_{v} = Reshape (states_{w}, before_shape_{v})
    reached_first_{v} = Slice (reached_{v}, axis_0, axis_1)
    nothing_{v} = Sub (reached_first_{v}, reached_first_{v})
    nothing_or_reached_{v} = Concat <axis = 0> (nothing_{v}, reached_{v})
    last_{w}_scalar = Squeeze (last_{w})
    previous_{v} = Range (zero, last_{w}_scalar, one)
    previous_step_{v} = Mod (previous_{v}, chunk)
    previous_chunk_{v} = Div (previous_{v}, chunk)
    previous_start_{v} = Mul (previous_step_{v}, chunks_{w})
    previous_place_{v} = Add (previous_start_{v}, previous_chunk_{v})
    previous_row_{v} = Add (previous_place_{v}, single)
    carry_row_{v} = Concat <axis = 0> (same, previous_row_{v})
    carry_{v} = Gather (nothing_or_reached_{v}, carry_row_{v})
    carried_{v} = Mul (passed_{v}, carry_{v})
    states_{v} = Add (h_{v}, carried_{v})
"""
