"""What a streamed GPU kernel multiplies was written by other threads before: no read of it comes before the barrier.

Triton's interpreter has one thread, so it cannot show this; nor do results, where a race is won. The compiler may move
reads ahead (it copies tiles into shared memory while it computes), so what it made is looked at, for a GPU of compute
capability 9.0 that need not be there.
"""

import re

import pytest

from tests.solvers.compiled.triton.kernels import REPORTS, reports

BEFORE = """
import importlib
from solvers.compiled.triton import compiler
from solvers.compiled.triton.tiling import Tiling

triton_compiler = importlib.import_module("triton.compiler")
compile, made = triton_compiler.compile, []

def kept(*args, **options):
    made.append(compile(*args, **options))
    return made[-1]

triton_compiler.compile = kept
compiler.tilings = lambda *_: [Tiling(16, 64, 16, 4, 3, KEPT)]
"""
AFTER = f'{REPORTS}\nprint(json.dumps([kernel.asm["ttgir"] for kernel in made]))'

#: What reads, writes, waits, and where loops begin and end, in the compiler's own language.
EVENT = re.compile(r"scf\.for|scf\.yield|tt\.store|ttg\.barrier|gpu\.barrier|ttg\.async_copy_global_to_local|tt\.load")


def events(text):
    """What happens in the loop over time, in order: with the depth of the loop in which it does."""
    sequence, depth = [], 0
    for kind in EVENT.findall(text):
        depth -= kind == "scf.yield"
        if depth:
            sequence.append((kind, depth))
        depth += kind == "scf.for"
    return sequence


def early(text):
    """Reads of operands after a write that no barrier came after; steps follow each other."""
    written, count = False, 0
    for kind, depth in 2 * events(text):
        if kind == "tt.store":
            written = True
        elif kind.endswith("barrier"):
            written = False
        elif written and (kind.startswith("ttg.async_copy") or (kind == "tt.load" and depth > 1)):
            count += 1
    return count


@pytest.mark.parametrize(
    ("name", "solver", "precision", "kept"),
    [
        ("multiscale", "semi_implicit_euler", "bf16", 0),
        pytest.param("multiscale", "semi_implicit_euler", "bf16", 4096, marks=pytest.mark.slow),
        pytest.param("oscillator", "semi_implicit_euler", "tf32", 0, marks=pytest.mark.slow),
        pytest.param("oscillator", "semi_implicit_euler", "bf16", 4096, marks=pytest.mark.slow),
        pytest.param("leaky", "rk4", "ieee", 0, marks=pytest.mark.slow),
        pytest.param("lipschitz", "midpoint", "bf16", 0, marks=pytest.mark.slow),
    ],
)
def test_operands_are_read_after_the_barrier(name, solver, precision, kept):
    texts = reports(name, solver, 64, precision, BEFORE.replace("KEPT", str(kept)), AFTER)
    assert len(texts) == 2
    for text in texts:
        assert "scf.if" not in text
        kinds = [kind for kind, _ in events(text)]
        assert "tt.store" in kinds and any(kind.startswith("ttg.async_copy") for kind in kinds)
        assert early(text) == 0
        # Without its barriers the same kernel would be found out.
        assert early(re.sub(r"ttg\.barrier|gpu\.barrier", "", text)) > 0
