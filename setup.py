"""Builds lamamba/native/liblamamba from compile/kernels/native/*.cpp, if there is a C++17 compiler (not on Windows).

A plain shared library, no Python extension: the wheel that carries it is tagged py3-none-<platform>, and
py3-none-any when nothing was built. CXX names another compiler, CXXFLAGS adds to its flags.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

MAC = sys.platform == "darwin"
SOURCES = sorted(str(path) for path in Path("compile/kernels/native").glob("*.cpp"))
HEADERS = sorted(str(path) for path in Path("compile/kernels/native").glob("*.h"))
# Contraction off: whether a compiler fuses a product and a sum must not decide whether results repeat.
COMPILE = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread"]
LINK = ["-shared", "-pthread"]
# The C++ runtime goes in, its names stay in, and threads of the library forbid unloading it.
LINUX_LINK = ["-static-libstdc++", "-static-libgcc", "-Wl,-z,nodelete", "-ldl"]
LINUX_LINK += ["-Wl,--exclude-libs,ALL", "-Wl,--version-script=compile/kernels/native/exports.map"]
INSTRUCTIONS = {  # by the end of a source's name; a compiler for another processor refuses them and builds it empty
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
}
WITHOUT = "installing without it, slower code takes its place"
WHEELS = {"bdist_wheel", "editable_wheel"}  # commands that build; pip runs this file for others too


def compiler() -> list[str]:
    """The command of a C++17 compiler that works, or an empty list."""
    if sys.platform == "win32":
        return []
    named = os.environ.get("CXX")
    for command in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) and compiles(
            command, [], "#include <atomic>\nstatic_assert(__cplusplus > 201402L);"
        ):
            return command
    return []


def compiles(command: list[str], flags: list[str], text: str) -> bool:
    """Whether this compiler takes these flags and a file that holds `text`, and links a library from it."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text(text + "\nint probe() { return 0; }\n")
        library = str(Path(folder, "probe.so"))
        probe = subprocess.run([*command, *COMPILE, *flags, *LINK, str(source), "-o", library], capture_output=True)
        return probe.returncode == 0


class BuildLibrary(build_ext):
    """Compiles with flags by source, which distutils cannot, and to a name without Python's version in it."""

    def get_ext_filename(self, fullname: str) -> str:
        return os.path.join(*fullname.split(".")) + (".dylib" if MAC else ".so")

    def build_extension(self, ext: Any) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        built = [target, Path(self.get_finalized_command("build_py").get_package_dir("lamamba.native"), target.name)]
        for old in built:  # a failed build must not leave one of another version
            old.unlink(missing_ok=True)
        try:
            self.build_library(compiler(), target)
        except subprocess.CalledProcessError as error:
            print(error.stderr, file=sys.stderr)
            say(f"building the native library failed ({error.cmd[0]}); {WITHOUT}")

    def build_library(self, command: list[str], target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        objects = Path(self.build_temp)
        objects.mkdir(parents=True, exist_ok=True)
        flags = [*COMPILE, *shlex.split(os.environ.get("CXXFLAGS", ""))]
        accepted = {name: more for name, more in INSTRUCTIONS.items() if compiles(command, more, "")}
        made = []
        for source in SOURCES:
            made.append(str(objects / f"{Path(source).stem}.o"))
            extra = accepted.get(Path(source).stem.rpartition("_")[2], [])
            run([*command, *flags, *extra, "-c", source, "-o", made[-1]])
        link = [*LINK, *([] if MAC else LINUX_LINK)]
        run([*command, *flags, *made, *link, *shlex.split(os.environ.get("LDFLAGS", "")), "-o", str(target)])
        say(f"built {target.name} with {command[0]} ({', '.join(['base', *accepted])})")


class PlatformWheel(bdist_wheel):
    """Tagged for the platform when it carries the library, never for a version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def run(command: list[str]) -> None:
    """Runs a command, quietly unless it fails."""
    subprocess.run(command, check=True, capture_output=True, text=True)


def say(line: str) -> None:
    """A line of the build log (`pip install -v`)."""
    print(f"lamamba: {line}", file=sys.stderr, flush=True)


def library() -> list[Extension]:
    """The library, or nothing and a line that says so."""
    if compiler():
        return [Extension("lamamba.native.liblamamba", SOURCES, depends=HEADERS, optional=True)]
    where = "Windows" if sys.platform == "win32" else "a machine without a C++17 compiler (or with CXX naming none)"
    if WHEELS & set(sys.argv):
        say(f"the native library is not built on {where}; {WITHOUT}")
    return []


if __name__ == "__main__":
    setup(ext_modules=library(), cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel})
