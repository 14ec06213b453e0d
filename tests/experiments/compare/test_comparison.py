import contextlib
import csv
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from experiments.command import demo
from experiments.compare import comparison, contenders, figures, reports
from experiments.compare.comparison import compare, select
from experiments.compare.contenders import PUBLISHED, TRAINED, Contender, sweep_of
from experiments.train.config import RunConfig
from experiments.train.training import evaluate, load_model, train
from solvers.errors import InputError, NumericalError, UnknownNameError

PNG = b"\x89PNG\r\n\x1a\n"


def small_run(root, **changes):
    """A run of a second on short sequences."""
    values = {
        "task": "adding",
        "task_options": {"length": 12, "train_size": 64, "validation_size": 20, "test_size": 30},
        "model_options": {"hidden_size": 8, "dt": 0.3, "gamma": 1.0, "epsilon": 1.0},
        "epochs": 1,
        "threads": 1,
    }
    return train(RunConfig.from_dict({**values, **changes}), root=root, progress=False).folder.path


@pytest.fixture(scope="module")
def cornn(tmp_path_factory):
    return small_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    options = {"hidden_size": 8, "dt": 0.2, "gamma": 1.0, "epsilon": 2.0}
    settings = {"task": "digits", "task_options": {}, "model_options": options, "limit_train_batches": 3}
    return small_run(tmp_path_factory.mktemp("runs"), **settings)


@pytest.fixture(scope="module")
def swept(cornn):
    return compare(cornn)


def row(rows, solver, substeps=1):
    (match,) = [r for r in rows if (r.contender.solver, r.contender.substeps) == (solver, substeps)]
    return match


def printed(thing):
    """What is printed, with every run of blanks and line ends as one blank."""
    out = Console(width=120, file=io.StringIO(), highlight=False)
    out.print(thing)
    return " ".join(out.file.getvalue().split())


# Contenders


def test_default_contenders_are_the_runs_own_then_the_standard_ones():
    listed = contenders.contenders(Contender("semi_implicit_euler"), "semi_implicit_euler")
    names = ["semi_implicit_euler", "imex_euler", "stormer_verlet", "rk4", "dopri5"]
    assert [c.solver for c in listed] == names
    assert [c.role for c in listed] == [TRAINED, "", "", "", ""]


def test_run_trained_with_another_solver_has_the_published_step_too():
    listed = contenders.contenders(Contender("rk4", substeps=2), "semi_implicit_euler", substeps=(1, 2))
    roles = {(c.solver, c.substeps): c.role for c in listed if c.role}
    assert roles == {("rk4", 2): TRAINED, ("semi_implicit_euler", 1): PUBLISHED}


def test_an_alias_and_its_solver_are_one_contender():
    listed = contenders.contenders(Contender("rk4"), "rk4", ["symplectic_euler", "semi_implicit_euler", "rk4"])
    assert [c.solver for c in listed] == ["semi_implicit_euler", "rk4"]


def test_options_go_to_the_solvers_that_take_them():
    listed = contenders.contenders(Contender("rk4"), "rk4", ["rk4", "dopri5"], options={"rtol": 1e-3})
    assert [dict(c.options) for c in listed] == [{}, {"rtol": 1e-3}]


def test_other_tolerances_are_not_what_the_run_was_trained_with():
    trained = Contender("dopri5", options={"rtol": 1e-3})
    (contender,) = contenders.contenders(trained, "rk4", ["dopri5"], options={"rtol": 1e-6})
    assert contender.role == ""


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"names": ["rk4", "dopri6"]}, UnknownNameError, ("dopri6", "dopri5")),
        ({"substeps": (2, 0)}, InputError, ("substeps", "0", "at least 1")),
        ({"names": ["rk4"], "options": {"rtol": 1.0}}, InputError, ("rk4", "rtol")),
        ({"names": ["dopri5"], "options": {"rtol": -1.0}}, InputError, ("rtol", "-1.0", "positive")),
    ],
)
def test_wrong_contenders_are_refused_in_one_line(arguments, error, words):
    with pytest.raises(error) as caught:
        contenders.contenders(Contender("rk4"), "rk4", **arguments)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_sweep_has_every_solver_once_at_each_step_size_or_tolerance():
    listed = sweep_of([Contender("rk4", 1, role=TRAINED), Contender("rk4", 2), Contender("dopri5")])
    assert [c.substeps for c in listed if c.solver == "rk4"] == list(contenders.SUBSTEPS)
    assert [c.options["rtol"] for c in listed if c.solver == "dopri5"] == list(contenders.TOLERANCES)
    assert not any(c.role for c in listed)


# Measurements


def test_the_runs_own_row_has_the_figures_of_an_evaluation(digits):
    result = compare(digits, ["semi_implicit_euler"], sweep=False)
    assert result.samples == result.available == 269
    trained = row(result.rows, "semi_implicit_euler")
    assert trained.contender.role == TRAINED
    # The evaluation is in float32: one sample on the edge between two classes may fall to either side.
    assert trained.metric == pytest.approx(evaluate(digits)["accuracy"], abs=1.5 / 269)
    assert result.metric_name == "accuracy"


def test_mean_squared_error_is_measured_for_a_regression(cornn, swept):
    assert swept.metric_name == "mse"
    assert row(swept.rows, "semi_implicit_euler").metric == pytest.approx(evaluate(cornn)["mse"], rel=1e-5)


def test_evaluations_are_counted_per_sequence(swept):
    counted = {r.contender.solver: r.evaluations for r in swept.rows}
    assert counted["semi_implicit_euler"] == counted["imex_euler"] == 12
    assert counted["rk4"] == 4 * 12
    assert counted["dopri5"] > 6 * 12


def test_deviation_is_the_relative_rms_of_the_states(cornn, swept):
    model, _, task = load_model(cornn)
    rnn = model.double().rnn
    x = select(task, 0, "test", None, 0)[0].x
    with torch.no_grad():
        exact = rnn.with_solver("rk4", substeps=200).solve(x).states
        off = (rnn.solve(x).states - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert row(swept.rows, "semi_implicit_euler").deviation == pytest.approx(float(off), rel=1e-6)


def test_the_observed_order_stands_beside_the_deviation(swept):
    orders = {r.contender.solver: r.order for r in swept.rows}
    assert orders["semi_implicit_euler"] == pytest.approx(1, abs=0.15)
    assert orders["stormer_verlet"] == pytest.approx(2, abs=0.2) and orders["dopri5"] is None
    coarse, fine = (row(swept.sweep, "rk4", count) for count in (1, 2))
    assert coarse.order == pytest.approx(math.log2(coarse.deviation / fine.deviation))


def test_two_methods_agree_on_the_reference(swept):
    assert swept.reference.deviation < 1e-7
    assert row(swept.rows, "dopri5").deviation < 1e-4


@pytest.mark.parametrize(("solver", "order"), [("semi_implicit_euler", 1), ("stormer_verlet", 2), ("rk4", 4)])
def test_deviation_falls_with_the_step_size_as_the_order_says(swept, solver, order):
    coarse, fine = (row(swept.sweep, solver, count).deviation for count in (8, 16))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.15)


def test_a_tighter_tolerance_deviates_less_and_costs_more(swept):
    series = [r for r in swept.sweep if r.contender.solver == "dopri5"]
    deviations, costs = [r.deviation for r in series], [r.evaluations for r in series]
    assert deviations == sorted(deviations, reverse=True) and costs == sorted(costs)


def test_solvers_that_cannot_run_are_rows_with_a_reason(tmp_path):
    run = small_run(tmp_path, model="lipschitz", model_options={"hidden_size": 6, "dt": 0.1})
    result = compare(run, sweep=False)
    assert [r.contender.solver for r in result.rows if not r.reason][:1] == ["euler"]
    refused = row(result.rows, "stormer_verlet")
    assert "partitioned" in refused.reason and "\n" not in refused.reason and refused.metric is None
    assert row(result.rows, "rk4").deviation < 1e-3
    text = printed(reports.table(result))
    assert "stormer_verlet" in text and "trained with" in text


def test_a_solver_that_breaks_down_is_a_row_with_a_reason(cornn):
    result = compare(cornn, ["rk4", "dopri5"], options={"max_steps": 1}, sweep=False)
    assert "max_steps = 1" in row(result.rows, "dopri5").reason
    assert row(result.rows, "rk4").metric is not None
    out = Console(width=120, file=io.StringIO())
    reports.publish(result, cornn, out, draw=False)
    (line,) = [line for line in out.file.getvalue().splitlines() if "did not run" in line]
    assert "max_steps = 1" in line


def test_layers_of_a_stack_are_all_compared(tmp_path):
    options = {"hidden_size": 4, "num_layers": 2, "dt": [0.1, 0.3], "gamma": 1.0, "epsilon": 1.0}
    result = compare(small_run(tmp_path, model_options=options), ["semi_implicit_euler", "rk4"], sweep=False)
    assert result.dt is None
    assert row(result.rows, "rk4").deviation < row(result.rows, "semi_implicit_euler").deviation
    assert row(result.rows, "rk4").evaluations == 2 * 4 * 12


def test_chunks_change_no_figure(cornn, swept, monkeypatch):
    monkeypatch.setattr(comparison, "STATE_BYTES", 8 * 12 * 2 * 8 * 7)
    monkeypatch.setattr(comparison, "FEWEST_SAMPLES", 10)
    monkeypatch.setattr(comparison, "SWEEP_WORK", 1)
    result = compare(cornn, ["rk4", "imex_euler"])
    for solver in ("rk4", "imex_euler"):
        whole, chunked = row(swept.rows, solver), row(result.rows, solver)
        assert chunked.metric == pytest.approx(whole.metric, rel=1e-12)
        assert chunked.deviation == pytest.approx(whole.deviation, rel=1e-6)
        assert chunked.evaluations == whole.evaluations and chunked.samples == whole.samples == 30
    assert {r.samples for r in result.sweep} == {10}


def test_samples_are_chosen_by_the_seed(cornn):
    _, _, task = load_model(cornn)
    first, again, other = (select(task, 0, "test", 5, seed)[0].x for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert select(task, 0, "test", 5, 1)[1] == 30
    whole = select(task, 0, "test", 1000, 0)[0].x
    assert torch.equal(whole, task.splits(0)[2][:][0].double())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"split": "tset"}, ("tset", "test")),
        ({"samples": 0}, ("samples", "0", "at least 1")),
    ],
)
def test_wrong_samples_are_refused_in_one_line(cornn, arguments, words, one_line):
    with pytest.raises(InputError) as caught:
        compare(cornn, **arguments)
    one_line(caught, *words)


def test_progress_goes_from_nothing_to_all(cornn):
    seen = []
    compare(cornn, ["rk4", "heun"], report=lambda what, done: seen.append((what, done)))
    fractions = [done for _, done in seen]
    assert fractions == sorted(fractions) and fractions[0] == 0 and fractions[-1] == 1
    assert any("heun (4 substeps)" in what for what, _ in seen)


# What is shown and written


def test_table_names_every_solver_and_what_was_done(swept):
    text = printed(reports.table(swept))
    for word in ("semi_implicit_euler", "trained with", "rtol 1e-06", "reference", "all 30 test samples", "float64"):
        assert word in text
    subset = printed(reports.table(replace(swept, samples=20)))
    assert "20 of 30 test samples" in subset


def test_files_hold_every_measurement(swept, tmp_path):
    paths = reports.write(swept, tmp_path)
    with paths[0].open() as file:
        rows = list(csv.DictReader(file))
    values = json.loads(paths[1].read_text())
    assert len(rows) == len(values["measurements"]) == len(swept.rows) + len(swept.sweep) + 1
    assert values["task"] == "adding" and values["samples"] == 30
    first, trained = rows[0], swept.rows[0]
    assert (first["part"], first["solver"]) == ("table", "semi_implicit_euler")
    assert float(first["deviation"]) == values["measurements"][0]["deviation"] == trained.deviation
    assert rows[-1]["solver"] == "dopri5_fixed" and int(rows[-1]["substeps"]) >= 8
    assert values["verdict"]["sentence"] == str(swept.verdict) and values["verdict"]["rule"]


def test_figures_are_pictures_of_a_useful_size(swept, tmp_path):
    paths = figures.draw(swept, tmp_path)
    assert [path.name for path in paths] == ["step_sizes.png", "trajectories.png"]
    for path in paths:
        content = path.read_bytes()
        width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
        assert content.startswith(PNG) and width > 1000 and height > 500


def test_figure_has_a_line_for_every_solver_and_marks_the_trained_step(swept):
    metric, deviation, work = figures.step_sizes(swept).axes
    labels = [line.get_label() for line in work.get_lines()]
    assert labels == ["semi_implicit_euler", "imex_euler", "stormer_verlet", "rk4", "dopri5"]
    assert [text.get_text() for text in deviation.texts if "order" in text.get_text()] == [
        "order 1",
        "order 2",
        "order 4",
    ]
    assert "as trained" in [text.get_text() for text in metric.texts]
    colours = [line.get_color() for line in work.get_lines()]
    assert len(set(colours)) == len(colours)


def test_without_a_sweep_only_trajectories_are_drawn(cornn, tmp_path):
    result = compare(cornn, ["rk4", "heun"], sweep=False, samples=4)
    assert [path.name for path in figures.draw(result, tmp_path)] == ["trajectories.png"]


def test_a_second_comparison_leaves_the_first(tmp_path):
    folders = [reports.new_folder(tmp_path) for _ in range(3)]
    assert [folder.name for folder in folders] == ["comparison", "comparison-2", "comparison-3"]


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, one_line):
    with pytest.raises(InputError) as caught:
        reports.new_folder(tmp_path / "gone")
    one_line(caught, "gone", "cannot be made")


def test_too_few_samples_are_said_before_anything_is_claimed(swept):
    assert swept.verdict.answer == "" and "30 sequences are too few" in reports.finding(swept)


def test_nothing_is_claimed_of_a_network_that_has_learnt_nothing(tmp_path):
    options = {"hidden_size": 6, "dt": 0.2, "gamma": 1.0, "epsilon": 2.0}
    settings = {"task": "digits", "task_options": {}, "model_options": options, "limit_train_batches": 1, "lr": 1e-9}
    result = compare(small_run(tmp_path, **settings), ["semi_implicit_euler", "rk4"], sweep=False)
    assert result.samples == 269 and not result.verdict.claim
    assert "no better than the best constant answer" in reports.finding(result)


def test_what_was_trained_must_be_among_those_that_ran(digits):
    result = compare(digits, ["rk4"], sweep=False)
    trained = [r for r in result.rows if r.contender.role == TRAINED]
    assert trained or "the solver of the training is not among those" in reports.finding(result)


def test_an_equation_that_cannot_be_solved_exactly_gives_no_claim(digits, monkeypatch):
    monkeypatch.setattr(comparison.subject, "CONFIRMED_TO", 0.0)
    result = compare(digits, ["semi_implicit_euler"], sweep=False)
    assert not result.verdict.claim and "the reference solution is not confirmed" in reports.finding(result)
    assert result.reference.contender == contenders.FALLBACK and result.rows[0].deviation > 0


def test_the_interval_of_a_metric_is_that_of_the_paired_difference(swept):
    """Of the mean of 30 differences: 1.96 standard errors."""
    trained = row(swept.rows, "semi_implicit_euler")
    assert 0 < trained.half_width < trained.metric and row(swept.rows, "rk4").half_width < trained.half_width


# The demonstration

SHORT = RunConfig.from_dict(
    {**demo.CONFIG.to_dict(), "epochs": 1, "limit_train_batches": 2, "threads": 1}
    | {"model_options": {**demo.CONFIG.model_options, "hidden_size": 4}}
)


def quiet(what):
    return contextlib.nullcontext(lambda doing, done: None)


def test_demo_trains_compares_draws_and_says_what_next(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "FEWEST_SAMPLES", 4)
    monkeypatch.setattr(comparison, "TABLE_WORK", 4 * 64)
    monkeypatch.setattr(demo, "FITTED", 20)
    out = Console(width=120, file=io.StringIO(), highlight=False)
    demo.demo(tmp_path, out, quiet, SHORT, least=0.0)
    text = out.file.getvalue()
    (run,) = tmp_path.iterdir()
    for name in ("learning_curve.png", "comparison/step_sizes.png", "comparison/trajectories.png"):
        assert (run / name).read_bytes().startswith(PNG)
        assert str(run / name) in text
    for solver in ("semi_implicit_euler", "imex_euler", "stormer_verlet", "rk4", "dopri5"):
        assert solver in text
    assert "the equation or the read-out" in text and "20 test sequences are too few" in text
    assert f"compare {run}" in text


def test_demo_that_falls_short_says_so_in_one_line(tmp_path, one_line):
    with pytest.raises(NumericalError) as caught:
        demo.demo(tmp_path, Console(file=io.StringIO()), quiet, SHORT, least=1.01)
    one_line(caught, "test accuracy", "digits-cornn-001")
