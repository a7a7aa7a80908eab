"""Opens damaged graphs; a process of its own, as what reads them is C++.

python -m tests.faults.graphs FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from lamamba.errors import InputError
from lamamba.runtimes.onnx_file import check_external_data, locations
from lamamba.runtimes.ort import GRAPHS, WEIGHTS, OrtEngine
from tests.faults.fuzz import cases, damaged

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
SECRET = "secret.bin"
ELSEWHERE = (f"../{SECRET}", str(FOLDER / SECRET), f"x/../../{SECRET}", "link", "up/secret.bin", "/dev/zero", "", ".")
NUMBERS = ("0", "16", "8", "-1", "9" * 30, "", "x", "0x10", "4611686018427387904")


def tensor(
    name: str, location: str, offset: str = "0", length: str = "16", kind: int = TensorProto.FLOAT
) -> TensorProto:
    made = TensorProto(name=name, data_type=kind, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        made.external_data.add(key=key, value=value)
    return made


def graph(location: str, offset: str = "0", length: str = "16", *, deep: bool = False) -> bytes:
    """y = x + w, w outside the file; `deep`: in a constant of a branch of an If inside a function."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy"]
    weight = tensor("w", location, offset, length)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    if not deep:
        body = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weight])
        return helper.make_model(body, opset_imports=opsets, ir_version=8).SerializeToString()
    branch = helper.make_graph([helper.make_node("Constant", [], ["c"], value=weight)], "b", [], [_named("c")])
    choose = helper.make_node("If", ["yes"], ["w"], then_branch=branch, else_branch=branch)
    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    add = helper.make_node("Add", ["x", "w"], ["y"])
    function = helper.make_function("own", "Add4", ["x"], ["y"], [yes, choose, add], opsets[:1])
    call = helper.make_node("Add4", ["x"], ["y"], domain="own")
    body = helper.make_graph([call], "g", values[:1], values[1:])
    return helper.make_model(body, opset_imports=opsets, functions=[function], ir_version=8).SerializeToString()


def _named(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [4])


def opened(content: bytes) -> bool:
    """Whether a graph passes the check of what it reads, and then that of the runtime."""
    path = FOLDER / "b" / GRAPHS[False]
    path.write_bytes(content)
    try:
        check_external_data(path, [WEIGHTS])
        OrtEngine(path.parent, "cpu", 1, {}).session(False)
    except InputError as error:
        message = str(error)
        assert message
        assert "\n" not in message
        return False
    return True


@cases()
@given(damaged(graph(WEIGHTS)) | damaged(graph(WEIGHTS, deep=True)) | st.binary(max_size=40))
def damaged_graphs(content: bytes) -> None:
    opened(content)


@cases()
@given(st.sampled_from((WEIGHTS, *ELSEWHERE)) | st.text(max_size=20), *[st.sampled_from(NUMBERS)] * 2, st.booleans())
def graphs_that_read_elsewhere(location: str, offset: str, length: str, deep: bool) -> None:
    content = graph(location, offset, length, deep=deep)
    assert list(locations(memoryview(content))) == [location] * (2 if deep else 1)
    assert not opened(content) or location == WEIGHTS


def main() -> None:
    (FOLDER / "b").mkdir()
    for path in (FOLDER / SECRET, FOLDER / "b" / WEIGHTS):
        path.write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (FOLDER / "b" / "link").symlink_to(f"../{SECRET}")
    (FOLDER / "b" / "up").symlink_to("..")
    assert opened(graph(WEIGHTS))
    assert list(locations(memoryview(graph(WEIGHTS, deep=True)))) == [WEIGHTS] * 2
    damaged_graphs()
    graphs_that_read_elsewhere()
    print("all refused or opened")


if __name__ == "__main__":
    main()
