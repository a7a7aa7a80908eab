"""The native library in ONNX Runtime: both paths through the same bundle agree, and it is known which one ran.

B batch, H W grid, D inner channels, K = 4 paths, N state, R dt rank.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from lamamba import native, runtimes
from lamamba.bundled import default_bundle
from lamamba.checkpoint import Checkpoint
from lamamba.compile.export import run_scan
from lamamba.compile.onnx_scan import DOMAIN, one_node_model
from lamamba.compile.prove import ParityError, Prover
from lamamba.errors import InputError
from lamamba.native import cuda
from lamamba.runtimes import ort_native
from lamamba.runtimes.bundle import Bundle, open_bundle
from lamamba.runtimes.ort import PROVIDERS, OrtEngine, open_engine, run_model
from lamamba.runtimes.parity import TOLERANCES, probe_inputs, probe_step, psnr, relative_error
from lamamba.runtimes.schedule import sampler_table
from tests.unit.test_onnx_scan import error, expected, inputs

Array = np.ndarray[Any, Any]
built = pytest.mark.skipif(not native.available(), reason="the native library was not built, or LAMAMBA_NATIVE=0")
COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), "")
compiler = pytest.mark.skipif(not COMPILER, reason="no C compiler to build a library that is not ours")
CPU = PROVIDERS["cpu"]


def scans_and_attentions(bundle: Bundle, file: str = "step.onnx") -> int:
    nodes = onnx.load(bundle.path / file, load_external_data=False).graph.node
    return sum(node.domain == DOMAIN for node in nodes)


@pytest.fixture(params=["tiny", "emoji", "half"])
def bundle(request: pytest.FixtureRequest) -> Bundle:
    name = {"tiny": "tiny_bundle", "half": "half_bundle"}.get(request.param)
    return request.getfixturevalue(name) if name else open_bundle(default_bundle())


@pytest.fixture
def library_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """Put another file in the library's place."""

    def place(path: Path) -> None:
        monkeypatch.setattr(native, "PATH", path)
        native._load.cache_clear()

    yield place
    native._load.cache_clear()


@built
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("guided", [False, True])
def test_both_paths_agree_on_one_bundle(bundle: Bundle, guided: bool, batch: int) -> None:
    table = sampler_table(bundle.alphas_cumprod, sampler="ddpm", steps=20, clip=bundle.clip)
    drawn = probe_inputs(bundle.shape, bundle.config.num_classes, 2.5, batch)
    found = {}
    for choice in ("off", "on"):
        before = ort_native.calls()
        found[choice] = probe_step(open_engine(bundle, provider="cpu", native=choice), drawn, table, guided)
        ran = ort_native.calls() - before
        nodes = scans_and_attentions(bundle, "step_guided.onnx" if guided else "step.onnx")
        assert ran == (0 if choice == "off" else 9 * nodes)
    bound = TOLERANCES[str(bundle.manifest["precision"]["compute"])].step
    for quantity in ("eps", "v", "x_next"):
        assert 0 < relative_error(found["on"][quantity], found["off"][quantity]) <= bound, quantity


@built
def test_kernels_for_cuda_leave_sessions_on_the_cpu_alone(tiny_bundle: Bundle) -> None:
    """A process that has opened, or only asked about, CUDA goes on computing attentions on the CPU."""
    if not cuda.add_kernels():
        pytest.skip("the package holds no kernels for CUDA")
    before = ort_native.calls()
    runtimes.load(tiny_bundle, native="on").sample_latents([0], seed=1, steps=1, sampler="ddim", guidance=1.0)
    assert ort_native.calls() - before == scans_and_attentions(tiny_bundle)


@built
def test_both_paths_make_the_same_pictures(bundle: Bundle) -> None:
    """On the trajectory that the tolerances are for: 20 steps that draw no noise."""
    pictures = {
        choice: runtimes.load(bundle, native=choice).sample([0, 1, 2], seed=4, steps=20, sampler="ddim")
        for choice in ("off", "on")
    }
    steps = np.abs(pictures["on"].astype(int) - pictures["off"])
    if bundle.manifest["precision"]["compute"] == "fp32":
        assert (steps <= 1).mean() >= 0.999
    else:
        assert psnr(pictures["on"], pictures["off"]) >= TOLERANCES["fp16"].psnr


@built
def test_auto_takes_the_library_and_repeats_bitwise(tiny_bundle: Bundle) -> None:
    auto, on = (runtimes.load(tiny_bundle, native=choice) for choice in ("auto", "on"))
    assert isinstance(auto.engine, OrtEngine)
    assert auto.engine.library == native.PATH
    first, again, asked = (runtime.sample_latents([0, 1], seed=5, steps=4) for runtime in (auto, auto, on))
    assert np.array_equal(first, again)
    assert np.array_equal(first, asked)


@built
def test_the_export_proved_both_paths(tiny_bundle: Bundle, half_bundle: Bundle) -> None:
    for made in (tiny_bundle, half_bundle):
        report = made.manifest["parity"]
        for name in ("op", "step", "trajectory", "image"):
            bounds = [[r["bound"] for r in report if r["rung"] == rung] for rung in (name, f"{name}, native")]
            assert bounds[0], name
            assert bounds[0] == bounds[1], name
        assert all(rung["passed"] for rung in report)


@built
def test_a_wrong_native_scan_is_refused(tiny_checkpoint: Checkpoint, tiny_bundle: Bundle) -> None:
    engine = OrtEngine(tiny_bundle.path, "cpu", None, {}, library=native.PATH)

    def wrong(scan: Any) -> Array:
        return run_scan({**scan, "d": scan["d"] * np.float32(1.001)}, native.PATH)

    with pytest.raises(ParityError, match="op, native"):
        Prover(tiny_checkpoint).prove_again(engine, wrong, "fp32", "native")


def run_native(arrays: dict[str, Array], threads: int = 2) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.register_custom_ops_library(str(native.PATH))
    model = one_node_model(arrays, "scan").SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=[CPU])
    y: Array = session.run(None, {name: arrays[name] for name in ("x", "proj")})[0]
    return y


GRIDS = [(6, 5, 8, 3, 1), (5, 7, 33, 7, 4), (4, 4, 130, 17, 16), (1, 9, 3, 1, 2), (1, 1, 2, 1, 1), (16, 16, 640, 20, 1)]


@built
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_one_node_agrees_with_float64(grid: tuple[int, ...], batch: int) -> None:
    arrays, before = inputs(grid, batch), ort_native.calls()
    assert error(run_native(arrays), expected(**arrays)) <= TOLERANCES["fp32"].op
    assert ort_native.calls() == before + 1


@built
def test_halves_give_the_rounded_result() -> None:
    arrays = inputs((5, 7, 33, 7, 4), 2)
    halves = arrays | {name: arrays[name].astype(np.float16) for name in ("x", "proj")}
    wide = halves | {name: halves[name].astype(np.float32) for name in ("x", "proj")}
    y = run_native(halves)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(y, run_native(wide).astype(np.float16))


@built
@pytest.mark.parametrize("grid", [(9, 6, 150, 5, 1), (4, 4, 16, 3, 1), (5, 7, 33, 7, 4)], ids=str)
def test_bitwise_for_any_threads_and_batch(grid: tuple[int, ...]) -> None:
    arrays = inputs(grid, 3)
    one, *others = (run_native(arrays, threads) for threads in (1, 2, 3))
    for other in others:
        np.testing.assert_array_equal(one, other)
    for image in range(3):
        alone = arrays | {name: arrays[name][image : image + 1] for name in ("x", "proj")}
        np.testing.assert_array_equal(one[image : image + 1], run_native(alone))


@built
def test_an_empty_batch() -> None:
    arrays = inputs((3, 4, 5, 2, 1), 1)
    assert run_native(arrays | {name: arrays[name][:0] for name in ("x", "proj")}).shape == (0, 3, 4, 5)


@built
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dt_bias": (4, 5)}, r"dt_bias is \(4, 5\); expected \(4, 8\) beside x \(2, 6, 5, 8\), R 3 and N 1"),
        ({"a": (3, 8, 1)}, r"a is \(3, 8, 1\); expected \(4, 8, 1\)"),
        ({"a": (4, 8)}, r"a is \(4, 8\); expected \(4, 8, N\)"),
        ({"dt_weight": (4, 8, 2)}, r"proj is \(2, 6, 5, 20\); expected \(2, 6, 5, 16\) .* R 2 and N 1"),
        ({"dt_weight": (4, 8, 3, 1)}, r"dt_weight is \(4, 8, 3, 1\); expected \(4, 8, R\)"),
        ({"d": ()}, r"d is \(\); expected \(4, 8\)"),
        ({"proj": (2, 5, 6, 20)}, r"proj is \(2, 5, 6, 20\); expected \(2, 6, 5, 20\)"),
        ({"x": (6, 5, 8)}, r"x is \(6, 5, 8\); expected \(B, H, W, D\)"),
        ({"d": (1,) * 9}, "a tensor has 9 dimensions"),
    ],
    ids=str,
)
def test_a_wrong_shape_is_an_error_of_one_line(change: dict[str, tuple[int, ...]], message: str) -> None:
    arrays = inputs((6, 5, 8, 3, 1), 2) | {name: np.ones(shape, np.float32) for name, shape in change.items()}
    with pytest.raises(Exception, match="CrossScan: " + message) as raised:
        run_native(arrays)
    assert "\n" not in str(raised.value)


@built
def test_parameters_of_another_type_are_refused_when_loading() -> None:
    arrays = inputs((6, 5, 8, 3, 1), 2)
    with pytest.raises(Exception, match=r"float16.*\(a\)"):
        run_native(arrays | {"a": arrays["a"].astype(np.float16)})


@built
def test_what_is_covered() -> None:
    library = native.library()
    assert library is not None
    for kind, rank, state, covered in [(0, 1, 1, 1), (0, 81, 16, 1), (1, 3, 4, 1), (2, 3, 1, 0), (0, 0, 1, 0)]:
        assert library.lamamba_covers(CPU.encode(), kind, rank, state) == covered, (kind, rank, state)
    assert not library.lamamba_covers(b"QNNExecutionProvider", 0, 3, 1)
    assert not library.lamamba_covers(None, 0, 3, 1)
    for provider, kind, covered in [(CPU, 0, 1), (CPU, 1, 1), (CPU, 2, 0), ("QNNExecutionProvider", 0, 0)]:
        assert library.lamamba_covers_attention(provider.encode(), kind) == covered, (provider, kind)
    assert not library.lamamba_covers_attention(None, 0)


KNOWN = {"op": "lamamba.ai::CrossScan", "d_state": 1, "dt_rank": 3, "dtype": "fp32"}
ATTENTION = {"op": "lamamba.ai::ShiftedWindowAttention", "dtype": "fp32"}


@built
@pytest.mark.parametrize(
    "ops",
    [
        [],
        [KNOWN, KNOWN | {"dtype": "bf16"}],
        [KNOWN, KNOWN | {"dtype": "int8"}],
        [KNOWN, KNOWN | {"op": "lamamba.ai::Other"}],
        [KNOWN, ATTENTION | {"dtype": "bf16"}],
        [KNOWN | {"d_state": "1"}],
        [{"op": "lamamba.ai::CrossScan"}],
    ],
    ids=str,
)
def test_one_variant_that_is_not_covered_leaves_all_to_the_graph(ops: list[dict[str, Any]]) -> None:
    assert ort_native.choose_library([KNOWN, ATTENTION], CPU) == native.PATH
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ort_native.choose_library(ops, CPU) is None
    with pytest.raises(InputError, match="cannot be used"):
        ort_native.choose_library(ops, CPU, "on")


def computed_by_the_graph(bundle: Bundle, choice: str = "auto") -> None:
    before = ort_native.calls() if native.available() else 0
    engine = open_engine(bundle, provider="cpu", native=choice)
    drawn = probe_inputs(bundle.shape, bundle.config.num_classes, 2.5, 1)
    table = sampler_table(bundle.alphas_cumprod, sampler="ddim", steps=2, clip=bundle.clip)
    engine.read(engine.step(engine.begin(*drawn), table[0], None))
    assert engine.library is None
    assert (ort_native.calls() if native.available() else 0) == before


def test_switched_off(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        computed_by_the_graph(tiny_bundle, "off")
        monkeypatch.setenv("LAMAMBA_NATIVE", "0")
        computed_by_the_graph(tiny_bundle)
    with pytest.raises(InputError, match="LAMAMBA_NATIVE=0"):
        open_engine(tiny_bundle, native="on")
    with pytest.raises(InputError, match="native must be one of auto, on, off, got 'yes'"):
        open_engine(tiny_bundle, native="yes")


def test_absent_is_silent(tiny_bundle: Bundle, library_at: Callable[[Path], None], tmp_path: Path) -> None:
    library_at(tmp_path / "liblamamba.so")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert engine_with_sessions(tiny_bundle).library is None
    with pytest.raises(InputError, match="was not built"):
        open_engine(tiny_bundle, native="on")


def engine_with_sessions(bundle: Bundle) -> OrtEngine:
    engine = open_engine(bundle, provider="cpu")
    for guided in (False, True):
        assert engine.session(guided).get_providers() == [CPU]
    return engine


def compiled(folder: Path, text: str) -> Path:
    source, library = folder / "other.c", folder / "libother.so"
    source.write_text(text)
    subprocess.run([COMPILER, "-shared", "-fPIC", str(source), "-o", str(library)], check=True, capture_output=True)
    return library


@compiler
def test_of_another_interface(tiny_bundle: Bundle, library_at: Callable[[Path], None], tmp_path: Path) -> None:
    library_at(compiled(tmp_path, "int lamamba_abi(void) { return 999; }"))
    with pytest.warns(RuntimeWarning, match="interface 999") as warned:
        engine = engine_with_sessions(tiny_bundle)
    assert engine.library is None
    assert len(warned) == 1
    with pytest.raises(InputError, match="it has interface 999 where this package expects"):
        open_engine(tiny_bundle, native="on")


# A library that loads and covers everything, but that ONNX Runtime refuses: always, or after the first time.
REFUSED = """
int lamamba_abi(void) { return %d; }
int lamamba_register_for(const char *provider) { return 0; }
int lamamba_covers(const char *provider, int type, long rank, long state) { return 1; }
int lamamba_covers_attention(const char *provider, int type) { return 1; }
long lamamba_calls(void) { return 0; }
int lamamba_cross_scan_forward(void) { return -1; }
int lamamba_cross_scan_backward(void) { return -1; }
int lamamba_window_attention_forward(void) { return -1; }
int lamamba_choose_instruction_set(void) { return -1; }
const char *lamamba_instruction_set(void) { return "none"; }
typedef void *(*create_status)(int code, const char *text);
struct base { create_status *(*get_api)(unsigned version); };
void *RegisterCustomOps(void *options, const struct base *base) {
  static int times;
  return times++ < %d ? 0 : base->get_api(1)[0](1, "not today");
}
"""


@compiler
@pytest.mark.parametrize("after", [0, 1])
def test_refused_by_onnxruntime(
    tiny_bundle: Bundle, library_at: Callable[[Path], None], tmp_path: Path, after: int
) -> None:
    library_at(compiled(tmp_path, REFUSED % (native.ABI, after)))
    with pytest.warns(RuntimeWarning, match="not today") as warned:
        engine = engine_with_sessions(tiny_bundle)
    assert engine.library is None
    assert len(warned) == 1
    with pytest.raises(InputError, match="not today"):
        open_engine(tiny_bundle, provider="cpu", native="on").session(False)


@built
def test_a_session_on_the_cpu_does_not_mind_kernels_for_cuda() -> None:
    code = """
import numpy as np
from tests.parity import test_native_ort as t
from tests.unit import cuda_calls, test_onnx_scan
cuda_calls.library = t.native.library()
for kind in (0, 1):
    assert cuda_calls.kernel(cuda_calls.launch(), type=kind) == 0
arrays = test_onnx_scan.inputs((6, 5, 8, 3, 1), 2)
assert test_onnx_scan.error(t.run_native(arrays), test_onnx_scan.expected(**arrays)) < 1e-5
assert t.ort_native.calls() == 1
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr


@built
def test_a_model_that_is_run_once_takes_the_library() -> None:
    arrays, before = inputs((6, 5, 8, 3, 1), 2), ort_native.calls()
    model, feed = one_node_model(arrays, "scan").SerializeToString(), {n: arrays[n] for n in ("x", "proj")}
    portable, by_library = run_model(model, feed)[0], run_model(model, feed, native.PATH)[0]
    assert ort_native.calls() == before + 1
    assert relative_error(by_library, portable) <= TOLERANCES["fp32"].op
