"""The generator: which networks it draws, that they work, and what its numbers mean."""

import contextlib
import itertools

import pytest

pytest.importorskip("optuna")

import neuralosc
import solvers
from experiments.sweep import space
from experiments.sweep.space import SPREAD, Space
from experiments.train.model import build, make_task
from solvers.errors import InputError, NumericalError

TASK = {"task": "adding", "task_options": {"length": 6, "train_size": 10, "validation_size": 10, "test_size": 10}}


def middle(drawn, **changed):
    return {**dict.fromkeys(drawn.numbers, 0.5), **changed}


def grid(count):
    """Numbers between 0 and 1, the middle of each of so many equal parts."""
    return [(place + 0.5) / count for place in range(count)]


def test_only_pairings_that_work_are_drawn():
    every = Space(solvers=tuple(solvers.SOLVERS), gradients=tuple(solvers.GRADIENTS), controls=tuple(solvers.CONTROLS))
    assert {one.name for one in every.networks} == {c.name for c in neuralosc.models() if c.field and not c.blocks}
    seen = set()
    for number, network in zip(grid(len(every.networks)), every.networks, strict=True):
        drawn = set()
        for at in grid(len(every.methods)):
            for other in (0.0, 0.3, 0.6, 1.0):
                config = every.config(middle(every, model=number, solver=at, gradient=other, control=other))
                assert config.model == network.name
                options = config.model_options
                choices = (solvers.get(options["solver"]), solvers.get_gradient(options["gradient"]))
                solvers.check(network.field, *choices, solvers.get_control(options["control"]))
                drawn.add(options["solver"])
        # And each that works can be drawn.
        assert drawn == set(network.fitting)
        assert drawn <= set(solvers.compatible(network.field))
        seen |= drawn
    assert seen == set(solvers.SOLVERS)


@pytest.mark.parametrize("at", [0.0, 0.37, 0.5, 1.0])
def test_what_is_drawn_can_be_built_and_run(at):
    drawn = Space(settings=TASK, ranges={"hidden_size": (2, 8)})
    for number in grid(len(drawn.networks)):
        config = drawn.config({**dict.fromkeys(drawn.numbers, at), "model": number})
        task = make_task(config)
        model = build(config, task)
        # Long steps of an explicit method may well leave every bound; a sweep learns that.
        with contextlib.suppress(NumericalError):
            assert model(task.splits(0)[0][:][0]).shape == (10, 1), config.model_options


def test_a_number_in_the_middle_is_what_was_published():
    drawn = Space(models=("cornn", "lipschitz"))
    for number, name in zip(grid(2), [one.name for one in drawn.networks], strict=True):
        options = drawn.config(middle(drawn, model=number)).model_options
        published = neuralosc.model(name).defaults
        for key in ("dt", *(key for key in drawn.coefficients if key in published)):
            assert options[key] == pytest.approx(published[key], rel=1e-5), (name, key)
        assert not [key for key in options if key != "hidden_size" and key not in published]


def test_numbers_grow_with_what_they_stand_for_and_shares_stay_shares():
    drawn = Space(models=("lipschitz",))
    ats = [0.0, 0.25, 0.5, 0.75, 1.0]
    for name, published in {"dt": 0.03, "beta": 0.75, "gamma": 0.001, "alpha": 1.0}.items():
        values = [drawn.value(name, at, published) for at in ats]
        assert values == sorted(values) and len(set(values)) == 5
    assert drawn.value("dt", 1.0, 0.3) == pytest.approx(0.3 * SPREAD) and drawn.value("dt", 0.0, 0.3) == 0.03
    assert drawn.value("beta", 1.0, 0.75) == pytest.approx(30 / 31, rel=1e-5)
    assert drawn.value("beta", 0.0, 0.75) == pytest.approx(0.3 / 1.3, rel=1e-5)
    assert [drawn.value("hidden_size", at) for at in (0, 0.5, 1)] == [16, 64, 256]
    narrow = Space(models=("lipschitz",), ranges={"lr": (0.01, 0.04), "beta": (0.2, 0.8)})
    assert [narrow.value("lr", at) for at in (0, 0.5, 1)] == [0.01, 0.02, 0.04]
    assert narrow.config(middle(narrow, beta=0.5)).model_options["beta"] == pytest.approx(0.4)


def test_solvers_are_ordered_by_what_they_cost_and_a_missing_one_is_the_nearest():
    drawn = Space(models=("ctrnn", "cornn"), solvers=("rk4", "stormer_verlet", "euler", "implicit_euler", "dopri5"))
    assert drawn.methods == ("euler", "stormer_verlet", "rk4", "implicit_euler", "dopri5")
    ctrnn, cornn = 0.2, 0.8

    def solver(network, place):
        return drawn.config(middle(drawn, model=network, solver=(place + 0.5) / 5)).model_options["solver"]

    assert [solver(cornn, place) for place in range(5)] == list(drawn.methods)
    # It has no velocity: the nearest is euler, the cheaper of two that are as near.
    assert [solver(ctrnn, place) for place in range(5)] == ["euler", "euler", "rk4", "implicit_euler", "dopri5"]


def test_like_networks_stand_beside_each_other():
    names = [one.name for one in Space().networks]
    kinds = [space._kind(one.field) for one in Space().networks]
    assert kinds == sorted(kinds)
    assert abs(names.index("cayley") - names.index("exprnn")) == 1
    first_order = [neuralosc.make(n, input_size=1, hidden_size=4).fields[0].components == 1 for n in names]
    assert first_order == sorted(first_order, reverse=True)


def test_what_is_given_is_fixed_and_everything_else_is_drawn():
    options = {
        "solver": "rk4",
        "gamma": 1.0,
        "dt": 0.2,
        "hidden_size": 12,
        "gradient": {"name": "truncated", "steps": 4},
    }
    drawn = Space(settings={**TASK, "lr": 0.02, "model_options": options}, models=("cornn", "lem"))
    assert drawn.numbers == ("model", "control", "epsilon")
    for at in itertools.product((0.0, 1.0), repeat=3):
        config = drawn.config(dict(zip(drawn.numbers, at, strict=True)))
        assert config.lr == 0.02 and config.task == "adding" and config.model_options["solver"] == "rk4"
        assert config.model_options["dt"] == 0.2 and config.model_options["hidden_size"] == 12
        assert config.model_options["gradient"] == {"name": "truncated", "steps": 4}
        # What a network does not take is left out of it.
        assert config.model_options.get("gamma") == (1.0 if config.model == "cornn" else None)


def test_options_of_a_solver_go_to_those_that_take_them():
    drawn = Space(settings={"solver_options": {"rtol": 1e-3}}, models=("cornn",), solvers=("rk4", "dopri5"))
    found = [drawn.config(middle(drawn, solver=at)) for at in (0.0, 1.0)]
    assert [config.solver_options for config in found] == [{}, {"rtol": 1e-3}]


def test_a_space_is_written_down_and_made_again():
    drawn = Space(
        {**TASK, "model_options": {"gamma": 2.0}}, ("cornn", "lem"), ("rk4",), (), ("hold",), {"lr": (0.1, 0.2)}
    )
    again = Space.from_dict(drawn.to_dict())
    point = dict.fromkeys(drawn.numbers, 0.3)
    assert again == drawn and again.numbers == drawn.numbers and again.config(point) == drawn.config(point)


REFUSED = {
    "fixes it to 'lem'": {"settings": {"model": "lem"}, "models": ("cornn",)},
    "fixes it to 'rk4'": {"settings": {"model_options": {"solver": "rk4"}}, "solvers": ("euler",)},
    "unknown model 'corn'": {"models": ("corn",)},
    "unknown solver 'rk5'": {"solvers": ("rk5",)},
    "unknown gradient 'backdrop'": {"gradients": ("backdrop",)},
    "unknown control 'hole'": {"controls": ("hole",)},
    "'lstm' has no solver": {"models": ("lstm",)},
    "'linoss' has no solver": {"models": ("linoss",)},
    "'cfc' works with none": {"models": ("cfc", "lem"), "solvers": ("rk4",)},
    "unknown setting of these networks 'gamma'": {"settings": {"model_options": {"gamma": 1.0}}, "models": ("lem",)},
    "unknown option of these solvers 'rtol'": {"settings": {"solver_options": {"rtol": 1.0}}, "solvers": ("rk4",)},
    "unknown number to draw 'gamma'": {"models": ("lem",), "ranges": {"gamma": (1.0, 2.0)}},
    "--range lr=2:1": {"ranges": {"lr": (2.0, 1.0)}},
    "--range hidden_size=0.5:9": {"ranges": {"hidden_size": (0.5, 9.0)}},
    "unknown configuration key 'epoch'": {"settings": {"epoch": 3}},
    "nothing is left to draw": {
        "settings": {"model": "lem", "lr": 0.1, "model_options": {"dt": 1.0, "hidden_size": 4, "control": "hold"}},
        "solvers": ("rk4",),
    },
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(said):
    with pytest.raises(InputError, match=said):
        Space(**REFUSED[said])
