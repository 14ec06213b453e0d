"""From source to functions: the compiler that is there, called once for each different source, its results kept."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from solvers.compiled.passes.cache import cache
from solvers.compiled.step.refused import Refused

#: Names the compiler; the first of g++, clang++ and c++ that is found where it is not set.
COMPILER = "NEURALOSC_CXX"

#: Nothing that changes results beyond the contraction of a product and a sum: NaN and infinities keep their meaning.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-w")
#: Tried in this order: what the processor can do, else what every processor of its kind can.
TARGETS = (("-march=native",), ("-mcpu=native",), ())


def compiler() -> str:
    """The path of a C++ compiler.

    Raises:
        Refused: there is none.
    """
    asked = os.environ.get(COMPILER)
    found = _found(asked, os.environ.get("PATH"))
    if found is None:
        raise Refused(f"no C++ compiler found ({asked or 'g++, clang++, c++'}): install one or set {COMPILER}")
    return found


@functools.lru_cache(maxsize=8)
def _found(asked: str | None, _path: str | None) -> str | None:
    """Looked for once: every solve asks, and looking through the folders takes longer than some of its steps."""
    names = [asked] if asked else ["g++", "clang++", "c++"]
    return next(filter(None, map(shutil.which, names)), None)


@functools.lru_cache(maxsize=8)
def _version(path: str) -> str:
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"the compiler {path} does not run: {error}") from None
    return run.stdout


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """What distinguishes this processor from others that a cache folder may be shared with."""
    try:
        text = Path("/proc/cpuinfo").read_text()
        lines = sorted(
            {line for line in text.splitlines() if line.startswith(("vendor_id", "model name", "flags", "Features"))}
        )
        return "\n".join(lines)
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def library(source: str) -> ctypes.CDLL:
    """The compiled source, from the cache if it was compiled before.

    Raises:
        Refused: there is no compiler, or it fails, or nothing can be written.
    """
    path = compiler()
    name = hashlib.sha256("\0".join((source, *FLAGS, path, _version(path), processor())).encode()).hexdigest()[:32]
    target = cache() / f"{name}.so"
    if not target.exists():
        _compile(path, source, target)
    try:
        return ctypes.CDLL(str(target))
    except OSError as error:
        raise Refused(f"the compiled step does not load: {error}") from None


def _compile(path: str, source: str, target: Path) -> None:
    """Compile under a temporary name, then rename: another process sees all of a file or nothing."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="building-") as folder:
            code, library = Path(folder) / "step.cpp", Path(folder) / "step.so"
            code.write_text(source)
            for flags in TARGETS:
                command = [path, *FLAGS, *flags, *_width(), str(code), "-o", str(library)]
                run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
                if run.returncode == 0 and library.exists():
                    os.replace(code, target.with_suffix(".cpp"))
                    os.replace(library, target)
                    return
    except (OSError, subprocess.SubprocessError) as error:
        raise Refused(f"the step could not be compiled: {error}") from None
    message = (run.stderr or run.stdout or "no message").strip().splitlines()
    raise Refused(f"the compiler {path} failed: {message[-1] if message else 'no message'}")


def _width() -> tuple[str, ...]:
    """Full vectors, where compilers would hold back."""
    return ("-mprefer-vector-width=512",) if "avx512f" in processor() else ()


@functools.lru_cache(maxsize=1)
def blas() -> dict[str, int]:
    """Addresses of the products torch carries and, where there are any, of what runs them on several threads.

    Raises:
        Refused: torch exports none.
    """
    folder = Path(torch.__file__).parent / "lib"
    found: dict[str, int] = {}
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "libmkl_rt.so", "libopenblas.so", "libscipy_openblas.so"):
        try:
            handle = ctypes.CDLL(str(folder / name) if (folder / name).exists() else name)
        except OSError:
            continue
        for symbol in ("sgemm_", "dgemm_", "MKL_Set_Num_Threads_Local", "GOMP_parallel"):
            if symbol not in found and hasattr(handle, symbol):
                found[symbol] = _address(getattr(handle, symbol))
        if "sgemm_" in found:
            return found
    raise Refused("the torch that is installed exports no sgemm_")


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def lacking_compiler() -> str:
    """What a compiled loop needs and is not there; empty when all of it is."""
    try:
        compiler()
        blas()
    except Refused as error:
        return str(error)
    return ""
