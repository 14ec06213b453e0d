"""What docs/speed.md says that can be checked: its names, its variables, its paths, its example."""

import re
from pathlib import Path

import torch

import neuralosc
from experiments.bench import suite
from solvers.compiled.cpp import compiler, gemm
from solvers.compiled.passes import cache, denormals
from solvers.run.choice import BACKENDS, WORTHWHILE

TEXT = (Path(__file__).parents[1] / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_backends_and_the_paths_are_all_there():
    (choices,) = re.findall(r"set_backend\((.*?)\)", TEXT)
    assert set(re.findall(r'"(\w+)"', choices)) == set(BACKENDS)
    paths = re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)
    assert set(paths[: len(BACKENDS) - 1]) == set(BACKENDS) - {"auto"}
    assert f"from {WORTHWHILE} steps on" in TEXT


def test_the_variables_are_those_that_are_read():
    assert set(re.findall(r"^\| `(NEURALOSC_\w+)` \|", TEXT, re.MULTILINE)) == {
        compiler.COMPILER,
        cache.CACHE,
        gemm.PRODUCTS,
        denormals.DENORMALS,
    }


def test_the_shapes_are_those_of_the_benchmark():
    flowing = " ".join(TEXT.split())
    told = {name: tuple(map(int, sizes.split(", "))) for name, sizes in re.findall(r"(S\d) \(([\d, ]+)\)", flowing)}
    assert told == {s.name: (s.time, s.batch, s.hidden, s.features) for s in suite.SHAPES if not s.linear}
    assert all(f"{part}" in TEXT for part in suite.PARTS)


def test_the_table_has_every_field_of_the_benchmark():
    rows = TEXT.split("<!-- table -->")[1].split("<!-- end of table -->")[0]
    fields = {line.split("|")[1].strip() for line in rows.splitlines() if line.startswith("| ")} - {"field"}
    assert fields == {case.field for case in suite.cases.cases(suite.SHAPES[0]).values()}


def test_the_example_shows_what_explain_prints():
    text = str(neuralosc.CoRNN(1, 64).explain(torch.rand(32, 100, 1), show=False))
    block = TEXT.split(">>> neuralosc.CoRNN")[1].split("```")[0].splitlines()[1:]
    told, printed = ([re.sub(r"[\d.]+", "#", line) for line in lines] for lines in (block, text.splitlines()))
    assert [line.split() for line in told] == [line.split() for line in printed]
