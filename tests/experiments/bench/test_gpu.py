"""The benchmark for GPUs, at tiny shapes and without one: Triton's interpreter or C++ computes what a GPU would."""

import io
import json
import os

import pytest
import torch
from rich.console import Console

from experiments.bench import gpu, gpu_cases, suite, training
from experiments.bench.cases import LOOP, PLAIN, Case, Shape, Subject
from experiments.bench.gpu import Goal
from experiments.command.cli import main
from solvers.errors import InputError
from tests.measures import has_bfloat16_lstm

FAST = "triton" if os.environ.get("TRITON_INTERPRET") == "1" else "compiled"


@pytest.fixture(scope="module")
def figures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "QUICK_LENGTHS", (10, 20))
        seen = []
        results = gpu.run(1, True, lambda what, done: seen.append(done), device="cpu", fast=FAST)
        assert seen == sorted(seen) and seen[0] == 0 and 0.5 < seen[-1] <= 1
        return results


def test_every_case_runs_and_agrees_with_its_peer(figures):
    timings, _, _ = figures
    todo = gpu_cases.groups(FAST, quick=True)
    assert [t.case.name for t in timings] == [case.name for group in todo for case in group.cases]
    for timing in timings:
        if timing.case.name == "torch.nn: LSTM, bfloat16" and not has_bfloat16_lstm():
            assert not timing.seconds and "could not create a primitive" in timing.note
        else:
            assert timing.seconds and not timing.note, (timing.case.name, timing.note)
    told = [t for t in timings if t.way]
    assert len(told) == 4 and all(t.way.startswith(f"{FAST}:") for t in told)


def test_what_is_computed_in_fewer_digits_is_checked_too(figures):
    fewer = [t.case for t in figures[0] if t.case.what.endswith(("tf32", "bfloat16")) and t.case.field == "coRNN"]
    assert [case.what for case in fewer] == [f"neuralosc, {FAST}, tf32", f"neuralosc, {FAST}, bfloat16"]
    assert all(case.peer == f"coRNN: {LOOP}" for case in fewer)


def test_full_size_is_that_of_the_goals():
    todo = gpu_cases.groups("triton", quick=False)
    assert [str(group.shape) for group in todo[:3]] == [
        "S1 (784, 120, 256, 1)",
        "U (784, 32, 256, 1)",
        "L (256, 8, 128, 64)",
    ]
    assert [group.shape.hidden for group in todo[3:]] == [128, 256, 512, 1024, 2048]
    for group in todo:
        names = [case.name for case in group.cases]
        assert all(case.floor in names and (case.peer is None or case.peer in names) for case in group.cases)


def test_goals_are_what_was_timed(figures):
    timings, reached, _ = figures
    times = {(t.shape.name, t.case.name): t.minimum for t in timings if t.seconds}
    assert len(reached) == 9
    assert reached[0].found == times["S1", f"coRNN: {LOOP}"] / times["S1", f"coRNN: neuralosc, {FAST}"]
    assert reached[1].found == times["S1", "torch.nn: LSTM"] / times["S1", f"coRNN: neuralosc, {FAST}"]
    layer = [seconds for (shape, name), seconds in times.items() if shape == "L" and "backward" in name]
    assert reached[-1].found >= 1e3 * min(layer) and reached[-1].unit == "ms"
    missing = gpu.goals([t for t in timings if LOOP not in t.case.what], FAST)
    assert missing[0].found is None and not missing[0].reached


def test_a_case_that_fails_is_left_out_and_the_others_are_timed(monkeypatch):
    def broken(seconds):
        def step():
            if seconds is None:
                raise RuntimeError("out of memory\nand more")
            return seconds

        return lambda shape, x: Subject(step)

    group = {
        "a: right": Case("a", "right", broken(1.0), "a: right"),
        "a: wrong": Case("a", "wrong", broken(2.0), "a: right", "a: right"),
        "a: fails": Case("a", "fails", broken(None), "a: right", "a: right"),
        "a: alone": Case("a", "alone", broken(3.0), "a: fails", "a: fails"),
    }
    timings = training.measure(Shape("T", 1, 1, 1), 2, todo=group, lenient=True)
    assert [bool(t.seconds) for t in timings] == [True, False, False, True]
    assert "disagree on the loss" in timings[1].note and timings[2].note == "out of memory"
    assert [row["floors_of_minima"] for row in training.rows(timings)] == [1.0, None, None, None]
    with pytest.raises(RuntimeError):
        training.measure(Shape("T", 1, 1, 1), 2, todo=group)
    monkeypatch.setattr(gpu, "_seconds", lambda *_: broken(None)(None, None).step())
    costs = gpu.growth(True, lambda *_: None, "cpu", FAST)
    assert all(cost.note == "left out: out of memory" for cost in costs)
    assert gpu.rows([], [], costs)["growth"][0]["value"] is None


@pytest.mark.parametrize(
    ("unit", "found", "reached"),
    [("ms", 2.0, True), ("ms", 4.0, False), ("times faster", 2.0, False), ("times faster", 4.0, True)],
)
def test_a_goal_is_reached_from_below_or_above(unit, found, reached):
    assert Goal("", unit, 3.0, found).reached == reached


def test_growth_is_measured_along_time_and_batch(figures):
    costs = figures[2]
    assert [cost.what for cost in costs] == ["time", "time", "batch", "batch"] and all(0 < c.value < 1e7 for c in costs)


def test_tables_and_json_hold_everything(figures):
    out = Console(width=250, file=io.StringIO())
    for table in gpu.tables(*figures):
        out.print(table)
    text = out.file.getvalue()
    for word in (
        "S1 (12, 3, 8, 2)",
        "UnICORNN, 3 layers",
        "GRU",
        "floor",
        PLAIN,
        "bfloat16",
        "0.65 ms",
        "30 times faster",
    ):
        assert word in text
    values = json.loads(json.dumps(gpu.rows(*figures)))
    assert len(values["goals"]) == 9 and {"wanted", "found", "reached"} <= set(values["goals"][0])
    assert values["training"][2]["way"].startswith(FAST) and values["growth"]


def test_digits_are_dropped_in_the_step_alone():
    before, seen = torch.get_float32_matmul_precision(), []

    def make(shape, x):
        return Subject(lambda: seen.append(torch.get_float32_matmul_precision()) or 0.0)

    gpu_cases.with_tf32(make)(Shape("T", 1, 1, 1), torch.zeros(1, 1, 1)).step()
    assert seen == ["high"] and torch.get_float32_matmul_precision() == before


def test_without_a_gpu_it_is_left_out_or_refused_in_one_line(monkeypatch, capsys, one_line):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert suite.parts_of(None) == ("training", "cost", "solving")
    for call in (lambda: suite.parts_of(["gpu"]), lambda: gpu.run(1, True)):
        with pytest.raises(InputError) as caught:
            call()
        one_line(caught, "'gpu'", "no GPU")
    assert main(["bench", "--parts", "gpu", "--quick"]) == 2
    assert "no GPU" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert suite.parts_of(None)[-1] == "gpu"


def test_the_command_prints_and_writes_it(monkeypatch, figures, capsys, tmp_path):
    monkeypatch.setattr(gpu, "available", lambda: True)
    monkeypatch.setattr(gpu, "run", lambda repeats, quick, report: figures)
    assert main(["bench", "--parts", "gpu", "--quick", "--json", str(tmp_path / "gpu.json")]) == 0
    assert "What is to be reached" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "gpu.json").read_text())["gpu"]["goals"]) == 9
