"""What a file given to the program can make it do: nothing but be read. No pickles, code, libraries or network."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lamamba
from lamamba.errors import InputError
from lamamba.native import PATH as NATIVE
from lamamba.runtimes.bundle import open_bundle
from tests.faults.corrupt import rehash
from tests.faults.test_corruption import ROOT
from tests.forge import copy_bundle, forge

PACKAGE = Path(lamamba.__file__).parent
FILES = sorted(path for folder in ("", "native", "bundled") for path in (PACKAGE / folder).glob("*.py"))
FILES += sorted(
    path for folder in ("compile", "runtimes", "cli") for path in (PACKAGE / folder).resolve().rglob("*.py")
)

# Modules that unpickle, run code, or fetch; and what may be called only as told here.
FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "code", "runpy", "pty"}
FORBIDDEN |= {"urllib", "http", "socket", "ssl", "requests", "httpx", "aiohttp", "ftplib", "huggingface_hub", "yaml"}
NEVER = {"eval", "exec", "compile", "__import__", "breakpoint"}
ATTRIBUTES = {
    "os.system",
    "os.popen",
    "torch.hub",
    "torch.jit",
    "torch.package",
    "torch.export.load",
    "numpy.fromregex",
    "np.fromregex",
}
LOADERS = {"CDLL", "PyDLL", "WinDLL", "LoadLibrary", "load_library", "register_custom_ops_library"}
LOADERS |= {"deserialize_cuda_engine", "from_pretrained", "load_inline", "allow_pickle"}
MAY_LOAD = {
    "native/__init__.py": {"CDLL"},  # the package's own library
    "files.py": {"CDLL"},  # the C library
    "runtimes/trt_device.py": {"CDLL"},  # the driver's
    "runtimes/ort_native.py": {"register_custom_ops_library"},  # the package's own
    # engines of the user's cache, and a bundle's with --trust-engine (tests/parity/test_trt.py sees that)
    "runtimes/trt_build.py": {"deserialize_cuda_engine"},
    "runtimes/trt_loop.py": {"deserialize_cuda_engine"},
}


def name_of(node: ast.expr) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def offences(tree: ast.AST, allowed: set[str]) -> Iterator[str]:
    """What in a file could unpickle, run, fetch or load something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {(node.module or "").partition(".")[0]}
        else:
            names = set()
        yield from (f"imports {name}" for name in names & FORBIDDEN)
        if isinstance(node, ast.Call):
            yield from _call(node, allowed)
        if isinstance(node, ast.Attribute) and name_of(node) in ATTRIBUTES:
            yield name_of(node)


def _call(call: ast.Call, allowed: set[str]) -> Iterator[str]:
    name, options = name_of(call.func), {item.arg: ast.unparse(item.value) for item in call.keywords}
    last = name.rpartition(".")[2]
    if name in NEVER or (last in LOADERS and last not in allowed):
        yield f"calls {name}"
    if name == "torch.load" and options.get("weights_only") != "True":
        yield "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load") and options.get("allow_pickle") != "False":
        yield "np.load without allow_pickle=False"
    if "shell" in options or options.get("allow_pickle") == "True":
        yield f"{name} with shell or pickles"
    if last in ("add_safe_globals", "set_default_load"):
        yield f"calls {name}"


def place_of(file: Path) -> str:
    for folder in ("compile", "runtimes", "cli"):
        if file.is_relative_to((PACKAGE / folder).resolve()):
            return f"{folder}/{file.relative_to((PACKAGE / folder).resolve()).as_posix()}"
    return file.relative_to(PACKAGE).as_posix()


@pytest.mark.parametrize("file", FILES, ids=place_of)
def test_no_code_unpickles_runs_fetches_or_loads_what_it_is_given(file: Path) -> None:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    assert list(offences(tree, MAY_LOAD.get(place_of(file), set()))) == []


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import urllib.request",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "subprocess.run(text, shell=True)",
        "ctypes.CDLL(path)",
        "options.register_custom_ops_library(path)",
        "torch.ops.load_library(path)",
        "torch.hub.load(name)",
        "torch.jit.load(path)",
        "torch.export.load(path)",
        "AutoencoderKL.from_pretrained(name)",
    ],
)
def test_offences_are_noticed(code: str) -> None:
    assert list(offences(ast.parse(code), set()))
    assert len(FILES) > 60
    assert not list(offences(ast.parse("re.compile(a); model.eval(); ast.literal_eval(b)"), set()))


def test_the_one_import_of_a_pickle() -> None:
    """Only weights, in one place; what it says of others, with advice, `tests/cli/test_export.py` sees."""
    loads = [place_of(file) for file in FILES if "torch.load(" in file.read_text(encoding="utf-8")]
    assert loads == ["checkpoint.py"]


# a bundle that would like to be run

SAMPLE = """
import os, sys
folder, events = sys.argv[1], []
def hook(event, arguments):
    first = str(arguments[0]) if arguments else ""
    if event.startswith(("socket.", "subprocess.", "os.exec", "os.system", "os.posix_spawn", "urllib.", "pickle.")):
        events.append((event, first))
    if event in ("import", "ctypes.dlopen", "exec") and folder in str(arguments):
        events.append((event, str(arguments)[:200]))
import lamamba.runtimes
sys.addaudithook(hook)
runtime = lamamba.runtimes.load(folder, sys.argv[2], threads=1)
runtime.sample([0], steps=1, guidance=2.0)
runtime.sample([0], steps=1, guidance=1.0)
mapped = [line for line in open("/proc/self/maps") if folder in line and "x" in line.split()[1]]
assert not events, events
assert not mapped, mapped
print("only read")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks for mapped code in /proc")
@pytest.mark.parametrize("runtime", ["ort", "torch"])
def test_nothing_in_a_bundle_is_run(tmp_path: Path, runtime: str) -> None:
    """Libraries, modules and pickles lie in it, named wherever a name could be taken for something to load."""
    folder = copy_bundle(tmp_path / "a.lamamba")
    names = ("sitecustomize.py", "numpy.py", "lamamba.py", "model.pkl", NATIVE.name, "ort_config.json", "custom_ops.so")
    for name in names:
        (folder / name).write_text("open('ran', 'w')\nraise SystemExit('ran')\n")
    if NATIVE.exists():
        shutil.copy(NATIVE, folder / NATIVE.name)
    library = str(folder / NATIVE.name)

    def change(facts: dict) -> None:
        facts["library"] = facts["custom_ops"] = facts["decoder"] = library
        facts["engine"] = {"file": "custom_ops.so", "library": library, "url": "http://localhost:1/x"}
        for op in facts.get("ops", []):
            op |= {"library": library, "file": NATIVE.name}
        facts["graphs"] = {**facts["graphs"], "library": library}

    forge(folder, change)
    for name in names:
        rehash(folder, name)
    command = [sys.executable, "-c", SAMPLE, str(folder), runtime]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "only read\n"), done.stderr
    assert not (ROOT / "ran").exists()
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("place", ["listed", "unlisted", "deeper", "folder"])
@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links")
def test_links_to_outside(tmp_path: Path, place: str) -> None:
    folder = copy_bundle(tmp_path / "a.lamamba")
    (tmp_path / "secret").write_text("not to be read")
    if place == "listed":
        (folder / "golden.npz").unlink()
        (folder / "golden.npz").symlink_to("../secret")
    elif place == "unlisted":
        (folder / "notes").symlink_to(tmp_path / "secret")
    elif place == "deeper":
        (folder / "x" / "y").mkdir(parents=True)
        (folder / "x" / "y" / "z").symlink_to("../../../secret")
    else:
        (folder / "x").symlink_to(os.sep)
    with pytest.raises(InputError, match="is a link to outside the bundle; the bundle is refused"):
        open_bundle(folder)


@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links")
def test_links_inside_are_followed(tmp_path: Path) -> None:
    folder = copy_bundle(tmp_path / "a.lamamba")
    (folder / "again").symlink_to("golden.npz")
    assert open_bundle(folder).name == "emoji"
    (tmp_path / "b.lamamba").symlink_to(folder)
    assert open_bundle(tmp_path / "b.lamamba").name == "emoji"


@pytest.mark.parametrize(
    "elsewhere", [b"../secret.weights", b"/etc//ssl/passwd0", b"notes.safetensors", b"x/model.safeten"]
)
def test_graphs_that_read_other_files(tmp_path: Path, elsewhere: bytes) -> None:
    """Whatever they are, and were they in the bundle: only files that the manifest names."""
    folder = copy_bundle(tmp_path / "a.lamamba")
    (folder / "notes.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:4096])
    path = folder / "step.onnx"
    content = path.read_bytes()
    old = b"model.safetensors"
    other = elsewhere.ljust(len(old), b"_")
    assert len(other) == len(old)
    path.unlink()
    path.write_bytes(content.replace(old, other))
    facts = json.loads((folder / "manifest.json").read_bytes())
    assert other.decode() not in facts["files"]
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(json.dumps(facts).encode())
    rehash(folder, "step.onnx")
    with pytest.raises(
        InputError, match=r"reads weights from .*, which is no file of its bundle; the bundle is refused"
    ):
        open_bundle(folder)
