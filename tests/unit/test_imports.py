"""Who may import whom, what an import brings along, and what a wheel installs."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LINKS = ("cli", "compile", "runtimes")
HEAVY = ("torch", "safetensors", "onnx", "onnxscript", "triton", "diffusers", "coremltools", "coreai", "tensorrt")
PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
# the torch engine runs the network with the compiler's operators, when it is asked for
ALLOWED = {("runtimes/torch.py", "lamamba.compile.ops"), ("runtimes/torch.py", "lamamba.compile.fused")}


def sources(layer: str) -> list[Path]:
    """The files of a layer: a top-level folder, or `lamamba` without the folders linked into it."""
    files = sorted((ROOT / layer).rglob("*.py"))
    assert files
    return [path for path in files if path.relative_to(ROOT).parts[:2] not in {("lamamba", link) for link in LINKS}]


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names that a piece of code imports, wherever it does; `from a import b` gives a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports depend on the name a folder is imported under"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports_at_once(path: Path) -> set[str]:
    """What importing a file imports: not what its functions import when called, nor what type checkers see."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kept = [n for n in tree.body if not isinstance(n, ast.FunctionDef | ast.ClassDef) and not is_for_types_only(n)]
    return set(imports(ast.Module(body=kept, type_ignores=[])))


def under(name: str, module: str) -> bool:
    return f"{name}.".startswith(f"{module}.")


def offences(layer: str, *forbidden: str) -> list[tuple[str, str]]:
    """(file, imported name) wherever a layer imports, at any depth, what it must not."""
    found = []
    for path in sources(layer):
        file = path.relative_to(ROOT).as_posix()
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            allowed = any(file == where and under(name, module) for where, module in ALLOWED)
            if not allowed and any(under(name, module) for module in forbidden):
                found.append((file, name))
    return found


def test_arrows() -> None:
    assert offences("lamamba", "lamamba.compile", "lamamba.cli") == []
    assert offences("compile", "lamamba.cli") == []
    assert offences("runtimes", "lamamba.compile", "lamamba.cli") == []
    assert offences("benchmarks", "lamamba.cli.train", "tests") == []


def test_folders_are_imported_under_the_package_name() -> None:
    for layer in ("lamamba", *LINKS, "tests", "benchmarks"):
        assert offences(layer, *LINKS) == []


def test_the_check_sees_an_offence(tmp_path: Path) -> None:
    code = "def f():\n    from lamamba.compile import export\n"
    assert list(imports(ast.parse(code))) == ["lamamba.compile.export"]
    (tmp_path / "a.py").write_text(code + "import numpy\n")
    assert imports_at_once(tmp_path / "a.py") == {"numpy"}


def test_runtimes_stand_on_numpy_and_their_own_engine() -> None:
    engines = {"torch": {"torch"}, "ort": {"onnxruntime"}, "coreai": {"coreai"}}  # by the first word of the file's name
    for path in sources("runtimes"):
        packages = {name.partition(".")[0] for name in imports_at_once(path)} - set(sys.stdlib_module_names)
        assert packages <= {"numpy", "lamamba"} | engines.get(path.stem.partition("_")[0], set()), path


def test_commands_import_only_what_every_installation_has() -> None:
    for path in sources("cli"):
        packages = {name.partition(".")[0] for name in imports_at_once(path)} - set(sys.stdlib_module_names)
        assert packages <= {"click", "numpy", "PIL", "tqdm", "lamamba"}, path


STAGES = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    importlib.import_module(name)
    found[name] = sorted({module.partition(".")[0] for module in sys.modules})
print(json.dumps(found))
"""


def modules_after(*names: str) -> dict[str, set[str]]:
    """Top-level modules loaded after importing each name in turn, in a process of its own."""
    run = subprocess.run([sys.executable, "-c", STAGES, *names], capture_output=True, text=True, check=True)
    return {name: set(modules) for name, modules in json.loads(run.stdout).items()}


def test_what_an_import_brings_along() -> None:
    commands = [f"lamamba.cli.{path.stem}" for path in sources("cli") if path.stem != "__init__"]
    after = modules_after("lamamba", "lamamba.runtimes", "lamamba.runtimes.ort", *commands)
    assert not after["lamamba"] & {*HEAVY, "numpy", "onnxruntime", "PIL", "click", "tqdm"}
    assert not after["lamamba.runtimes"] & {*HEAVY, "onnxruntime", "PIL", "click", "tqdm"}
    assert "onnxruntime" in after["lamamba.runtimes.ort"]
    for name, modules in after.items():
        assert not modules & set(HEAVY), name


def test_the_model_brings_torch_when_asked_for() -> None:
    assert "torch" in modules_after("lamamba.model")["lamamba.model"]


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {heavy}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
from lamamba.cli.{command} import main
main({arguments})
"""


def without_heavy(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command where torch and its company are not installed."""
    code = WITHOUT.format(heavy=set(HEAVY), command=command, arguments=list(arguments))
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_commands_without_torch(tmp_path: Path) -> None:
    sampled = without_heavy("sample", "-n", "1", "--steps", "1", "-o", str(tmp_path / "a.png"))
    assert (sampled.returncode, sampled.stderr) == (0, "")
    assert (tmp_path / "a.png").exists()
    verified = without_heavy("verify", "--strict")
    assert (verified.returncode, verified.stderr) == (0, "")
    for what in ("XL", "emoji"):
        shown = without_heavy("info", what)
        assert (shown.returncode, shown.stderr) == (0, "")
    (tmp_path / "released.pt").write_bytes(b"it needs torch to be read")
    for command, arguments in (
        ("sample", ["-n", "1", "--runtime", "torch", "-o", str(tmp_path / "b.png")]),
        ("verify", ["--against", "emoji"]),
        ("export", ["emoji", "-t", "ort", "-o", str(tmp_path / "c.lamamba")]),
        ("info", [str(tmp_path / "released.pt")]),
        ("train", ["--data", "nowhere", "--preset", "tiny", "-o", str(tmp_path / "d")]),
    ):
        refused = without_heavy(command, *arguments)
        assert refused.returncode == 2
        assert "pip install 'lamamba[torch]'" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "released.pt"}


# the wheel


def test_a_wheel_installs_one_package_and_all_of_it() -> None:
    settings = PYPROJECT["tool"]["setuptools"]
    packages = settings["packages"]
    assert {name.partition(".")[0] for name in packages} == {"lamamba"}
    assert "py-modules" not in settings
    folders = {path.parent for layer in ("lamamba", *LINKS) for path in sources(layer)}
    names = {".".join(("lamamba", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(packages) == {name.replace("lamamba.lamamba", "lamamba", 1) for name in names}
    assert {key: value for key, value in settings["package-dir"].items() if key != "lamamba"} == {
        f"lamamba.{link}": link for link in LINKS
    }


def test_folders_are_linked_into_the_package() -> None:
    for link in LINKS:
        path = ROOT / "lamamba" / link
        if not path.is_symlink():
            pytest.skip("this checkout has no symbolic links")
        assert path.readlink() == Path("..") / link


def test_dependencies() -> None:
    def names(requirements: list[str]) -> set[str]:
        return {requirement.partition(">")[0].partition("=")[0] for requirement in requirements}

    project = PYPROJECT["project"]
    assert names(project["dependencies"]) == {"numpy", "click", "pillow", "tqdm"}
    extras = project["optional-dependencies"]
    assert names(extras["ort"]) == {"onnxruntime"}
    assert {"torch", "ort", "ort-gpu", "trt", "coreml", "coreai", "train", "mamba", "test", "all"} <= set(extras)


def test_console_commands_exist() -> None:
    scripts = PYPROJECT["project"]["scripts"]
    assert set(scripts) == {f"lamamba-{path.stem}" for path in sources("cli") if "@click.command" in path.read_text()}
    for name, entry in scripts.items():
        module, _, function = entry.partition(":")
        assert getattr(importlib.import_module(module), function).name == name
