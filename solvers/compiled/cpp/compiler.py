"""From source to functions: the compiler that is there, called once for each different source, its results kept."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from solvers.compiled.passes import cache
from solvers.compiled.step.refused import Refused, Unavailable

#: Names the compiler; the first of g++, clang++ and c++ that is found where it is not set.
COMPILER = "NEURALOSC_CXX"

#: Nothing that changes results beyond the contraction of a product and a sum: NaN and infinities keep their meaning.
FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-w")
#: Tried in this order: what the processor can do, else what every processor of its kind can.
TARGETS = (("-march=native",), ("-mcpu=native",), ())


#: Seconds for a step to be compiled in; and the most of what a compiler says that becomes part of a reason.
SECONDS, WORDS = 300, 200

#: Compilers that do not run or do not end, and why: tried once in a process, which may have taken minutes.
_broken: dict[str, str] = {}


def compiler() -> str:
    """The path of a C++ compiler.

    Raises:
        Unavailable: there is none, or it was found not to run.
    """
    asked = os.environ.get(COMPILER)
    found = _found(asked, os.environ.get("PATH"))
    if found is None:
        raise Unavailable(f"no C++ compiler found ({asked or 'g++, clang++, c++'}): install one or set {COMPILER}")
    if found in _broken:
        raise Unavailable(_broken[found])
    return found


@functools.lru_cache(maxsize=8)
def _found(asked: str | None, _path: str | None) -> str | None:
    """Looked for once: every solve asks, and looking through the folders takes longer than some of its steps."""
    names = [asked] if asked else ["g++", "clang++", "c++"]
    return next(filter(None, map(shutil.which, names)), None)


@functools.lru_cache(maxsize=8)
def _version(path: str) -> str:
    return _run([path, "--version"], 60).stdout


def _run(command: list[str], seconds: float, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a compiler, whose own temporary files go into a folder; what it says may be in any encoding.

    Raises:
        Unavailable: it does not run, or does not end.
    """
    environment = None if folder is None else {**os.environ, "TMPDIR": str(folder)}
    try:
        return subprocess.run(
            command,
            capture_output=True,
            timeout=seconds,
            check=False,
            env=environment,
            encoding="utf-8",
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        what = f"does not end within {seconds:g} s"
    except OSError as error:
        what = f"does not run: {error.strerror or error}"
    _broken[command[0]] = f"the compiler {command[0]} {what}"
    raise Unavailable(_broken[command[0]])


@functools.lru_cache(maxsize=1)
def processor() -> str:
    """What distinguishes this processor from others that a cache folder may be shared with."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = sorted(
            {line for line in text.splitlines() if line.startswith(("vendor_id", "model name", "flags", "Features"))}
        )
        return "\n".join(lines)
    except OSError:
        return f"{platform.machine()} {platform.processor()}"


def library(source: str, *functions: str) -> ctypes.CDLL:
    """The compiled source, from the cache if it was compiled before, with these functions in it.

    Raises:
        Unavailable: there is no compiler, or it fails, or nothing can be written or loaded.
    """
    try:
        path = compiler()
        # Of an older C library than the one it was linked with, an object does not load.
        parts = (source, *FLAGS, path, _version(path), processor(), *platform.libc_ver())
        key = hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:32]
        found = cache.find(key, ".so")
        if found is not None:
            # Another process may be removing what is too much at this moment; then it is made again.
            with contextlib.suppress(OSError, AttributeError):
                return _loaded(found, functions)
        return _loaded(_compiled(path, source, key), functions)
    except Refused:
        raise
    except Exception as error:
        # Whatever it is that a machine can do wrong here, the step itself is right, and another path takes it.
        raise Unavailable(f"the step could not be compiled: {type(error).__name__}: {_brief(str(error))}") from error


def _loaded(path: Path, functions: Iterable[str]) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(path))
    for name in functions:
        getattr(loaded, name)
    return loaded


def _compiled(path: str, source: str, key: str) -> Path:
    """Compile in a temporary folder and keep the result, with the source beside it for whoever wants to read it."""
    with cache.workplace() as folder:
        code, made = folder / "step.cpp", folder / "step.so"
        code.write_bytes(source.encode())
        for flags in TARGETS:
            run = _run([path, *FLAGS, *flags, *_width(), str(code), "-o", str(made)], SECONDS, folder)
            if run.returncode == 0 and made.exists():
                cache.keep(key, ".cpp", source.encode())
                return cache.keep(key, ".so", made.read_bytes())
    said = _brief(run.stderr) or _brief(run.stdout) or "no message"
    raise Unavailable(f"the compiler {path} failed: {said}")


def _brief(text: str) -> str:
    """The last line of what was said, and no more of it than a reason can hold."""
    lines = text.strip().splitlines()
    return "".join(letter if letter.isprintable() else "?" for letter in lines[-1][:WORDS]) if lines else ""


def _width() -> tuple[str, ...]:
    """Full vectors, where compilers would hold back."""
    return ("-mprefer-vector-width=512",) if "avx512f" in processor() else ()


@functools.lru_cache(maxsize=1)
def blas() -> dict[str, int]:
    """Addresses of the products torch carries and, where there are any, of what runs them on several threads.

    Raises:
        Unavailable: torch exports none.
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
    raise Unavailable("the torch that is installed exports no sgemm_")


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
