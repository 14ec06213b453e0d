"""Triton, where there is one: what kernels are made for, how they are laid out, and what a compiled one takes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import json
import linecache
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from solvers.compiled.passes import cache
from solvers.compiled.passes.precision import asked as product_type
from solvers.compiled.step.plan import Plan, Program
from solvers.compiled.step.refused import Refused
from solvers.compiled.triton.tiling import GpuSource, Tiling, power, separable

#: Bytes of shared memory that one program can have on devices of compute capability 9.0.
SHARED = 227 * 1024
#: Bytes of matrices that are tried to be held on the chip.
HELD = 192 * 1024

#: Products that have the digits of a type and take half the time or memory of float32's.
_HALF = {torch.bfloat16: "bf16", torch.float16: "tf32"}


@dataclass(frozen=True)
class Target:
    """What a kernel is made for.

    Attributes:
        arch: compute capability times ten; 0 for Triton's interpreter.
        precision: of products: "ieee"; "tf32" where torch was told that it is enough, or for float16, which has as many
            digits; "bf16" for bfloat16.
        slack: by how much the comparison with the plain path is wider than that of the type asked for.
    """

    arch: int
    precision: str
    slack: float = 1.0


@dataclass(frozen=True)
class Report:
    """What one compiled kernel takes.

    Attributes:
        registers: of a thread.
        stack: bytes of memory of a thread, for what does not fit into registers.
        shared: bytes of shared memory of a program.
    """

    registers: int
    stack: int
    shared: int


def target(state: Tensor) -> Target:
    """What to make a kernel for.

    Raises:
        Refused: there is no Triton, or none that can run where the state is.
    """
    if importlib.util.find_spec("triton") is None:
        raise Refused("Triton is not installed, which GPU kernels are written in")
    asked = product_type(state)
    if state.device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(state.device)
        if torch.version.cuda is None:
            raise Refused("GPU kernels are made for CUDA alone")
        arch = 10 * major + minor
        if asked in _HALF and arch >= 80:
            return Target(arch, _HALF[asked])
        # torch.set_float32_matmul_precision("high") is the user's word that fewer digits are enough.
        return Target(arch, "tf32", 10.0) if torch.backends.cuda.matmul.allow_tf32 else Target(arch, "ieee")
    if os.environ.get("TRITON_INTERPRET") != "1":
        raise Refused("tensors in main memory need Triton's interpreter: set TRITON_INTERPRET=1")
    return Target(0, "bf16" if asked == torch.bfloat16 else "ieee")


def tilings(plan: Plan, program: Program, size: int, precision: str) -> list[Tiling]:
    """Layouts worth trying for a kernel, the best first; `size` is that of a number in bytes."""
    widest = power(max((node.width for node in plan.depth), default=1))
    matrices = {p.matrix for level in plan.levels for p in level.products}
    if not matrices:
        if separable(plan, program.width):
            return [Tiling(1, min(64, power(program.width)), 0, 1, 1)]
        piece = min(widest, 1024)
        return [Tiling(1, piece, 0, max(1, min(8, piece // 64)), 1)]
    size = 2 if precision == "bf16" else size
    bytes_held = size * sum(power(m.rows) * power(m.columns) for m in matrices)
    piece = min(widest, power(program.width))
    possible = []
    if bytes_held <= HELD:
        possible.append(Tiling(16, min(piece, 128), 0, 4 if precision == "tf32" else 8, 1))
    tile = min(piece, 128) ** 2
    kept = HELD // (size * tile) * tile
    if precision != "ieee" and bytes_held > HELD and 4 * size * kept >= bytes_held:
        # Reading matrices is what takes time: a good part of them on the chip is that much less to read. Without tensor
        # cores multiplying takes longer than reading, and such kernels spill, or break the compiler.
        possible.append(Tiling(16, min(piece, 128), 32, 8, 2, kept))
    # Fewer samples a program take fewer registers a thread, and read the matrices more often.
    for rows, depth, stages in ((16, 32, 3), (8, 16, 4), (4, 16, 2)):
        possible.append(Tiling(rows, min(piece, 256), depth, 8, stages))
    return possible


def module(text: str) -> Any:
    """The generated source, as a module; Triton reads its lines where Python's tracebacks do."""
    name = f"step_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
    if name not in sys.modules:
        made, file = ModuleType(name), f"<{name}>"
        # No file: nobody else can write it, and none can be damaged. Without a time the lines are kept.
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        # Triton looks for the module while its functions are defined.
        sys.modules[name] = made
        try:
            exec(compile(text, file, "exec"), made.__dict__)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def options(tiling: Tiling) -> dict[str, Any]:
    """What Triton is told about a kernel."""
    return {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": True}


def report(source: GpuSource, which: int, arch: int, dtype: torch.dtype) -> Report:
    """Compile a kernel (0 forward, 1 backward) for an architecture and say what it takes; no GPU is needed.

    Raises:
        Refused: it does not compile, with Triton's reason.
    """
    tiling, doubles = source.tilings[which], source.doubles[which]
    if (known := _known(source, which, arch)) is not None:
        return known
    signature = source.backward if which else source.forward
    assert signature is not None
    real = "*fp32" if dtype == torch.float32 else "*fp64"
    types = {f"p{i}": "*fp64" if name in doubles else real for i, name in enumerate(signature.pointers)}
    if source.half:
        matrices = (i for i, name in enumerate(signature.pointers) if isinstance(name, tuple) and name[0] == "matrix")
        types |= {f"p{i}": "*bf16" for i in matrices}
    types |= {f"n{i}": "i32" for i in range(len(signature.integers))}
    aligned: dict[Any, Any] = {(i,): [["tt.divisibility", 16]] for i in range(len(types))}
    types |= {name: "i32" for name in ("first", "last", "batch")}
    flags: dict[str, Any] = {"SUBSTEPS": 1, **(dict.fromkeys(source.outs, True) if which else {})}
    types |= dict.fromkeys(flags, "constexpr")
    function = getattr(module(source.text), "backward" if which else "forward")
    found = taken(function, types, flags, aligned, tiling, arch)
    _keep(source, which, arch, found)
    return found


def _known(source: GpuSource, which: int, arch: int) -> Report | None:
    """The report that was kept."""
    path = cache.find(_name(source, which, arch), ".json")
    try:
        return None if path is None else Report(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):  # removed at this moment, or of another version
        return None


def _keep(source: GpuSource, which: int, arch: int, found: Report) -> None:
    """Keep a report for other processes, where anything can be kept."""
    with contextlib.suppress(Refused):
        cache.keep(_name(source, which, arch), ".json", json.dumps(asdict(found)).encode())


#: What the other process does; it says what it found, since what it keeps may be private to it.
_APART = """
import dataclasses, json, pickle, sys
from solvers.compiled.triton import compiler
found = compiler.report(*pickle.load(sys.stdin.buffer))
print("\\n" + json.dumps(dataclasses.asdict(found)))
"""


def report_apart(source: GpuSource, which: int, arch: int, dtype: torch.dtype) -> Report:
    """As `report`, which is done once, in a process of its own: the compiler may abort, and would take this one along.

    Raises:
        Refused: it does not compile, with the last that was said.
    """
    known = _known(source, which, arch)
    if known is None:
        paths = os.pathsep.join(filter(None, (str(Path(__file__).parents[3]), *sys.path)))
        kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-W", "ignore", "-c", _APART]
        asked = pickle.dumps((source, which, arch, dtype))
        try:
            run = subprocess.run(
                command, input=asked, capture_output=True, timeout=600, env={**kept, "PYTHONPATH": paths}, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise Refused(f"the process that was to compile it did not: {error}") from None
        if run.returncode:
            raise Refused(_last_words(run.returncode, run.stderr.decode(errors="replace")))
        try:
            known = Report(**json.loads(run.stdout.splitlines()[-1]))
        except (ValueError, TypeError, IndexError):
            raise Refused("the process that was to compile it did not say what it takes") from None
        _keep(source, which, arch, known)
    return known


def _last_words(code: int, errors: str) -> str:
    """Why a process that compiles failed: a refusal, or how it ended."""
    reason = errors.rpartition("Refused: ")[2].partition("\n")[0] if "Refused: " in errors else ""
    return reason or f"Triton's compiler ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"


def taken(
    function: Any, types: dict[str, str], flags: dict[str, Any], known: dict[Any, Any], tiling: Tiling, arch: int
) -> Report:
    """Compile a Triton function for arguments of these types and say what it takes.

    Raises:
        Refused: it does not compile, with Triton's reason.
    """
    try:
        compiler = importlib.import_module("triton.compiler")
        gpu = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", arch, 32)
        made = compiler.compile(compiler.ASTSource(function, types, flags, known), target=gpu, options=options(tiling))
        return Report(*_usage(made.asm["cubin"]), made.metadata.shared)
    except Exception as error:
        raise Refused(f"Triton does not compile it: {type(error).__name__}: {_line(error)}") from error


def _line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no message"


def _name(source: GpuSource, which: int, arch: int) -> str:
    key = (source.text, which, arch, options(source.tilings[which]), _version())
    return f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}"


@functools.lru_cache(maxsize=1)
def _version() -> str:
    return str(importlib.import_module("triton").__version__)


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack of a compiled kernel, as the tool beside Triton reads them."""
    knobs = importlib.import_module("triton.knobs")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", listing)
    if usage is None:
        raise Refused("what a GPU kernel takes is not known")
    return int(usage[1]), int(usage[2])


def best(sources: Sequence[GpuSource], which: int, arch: int, dtype: torch.dtype) -> int:
    """The first source whose kernel fits without spilling registers, else the one that spills least.

    Raises:
        Refused: none fits into shared memory.
    """
    found: list[tuple[int, int]] = []
    reasons = []
    for i, source in enumerate(sources):
        try:
            taken = report_apart(source, which, arch, dtype)
        except Refused as error:
            reasons.append(str(error))
            continue
        if taken.shared > SHARED:
            reasons.append(f"it takes {taken.shared} bytes of shared memory, and there are {SHARED}")
            continue
        if not taken.stack:
            return i
        found.append((taken.stack, i))
    if not found:
        raise Refused(f"no tiling of a GPU kernel fits: {reasons[0]}")
    return min(found)[1]
