"""Bad input: one line that says what was given, what was expected and what to do."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc import ContinuousRNN
from solvers import InputError

NAN, INF = float("nan"), float("inf")


def network(**settings):
    return neuralosc.CoRNN(2, 3, dt=0.1, **settings)


def at(value, shape, place):
    x = torch.ones(shape)
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.ones(4, 2), ["(4, 2)", "(batch, time, 2)", "unsqueeze"]),
        (torch.ones(4, 5, 3), ["(4, 5, 3)", "(batch, time, 2)"]),
        (torch.ones(4, 5, 2, 1), ["(4, 5, 2, 1)"]),
        (torch.ones(4, 0, 2), ["(4, 0, 2)", "at least one"]),
        (torch.ones(4, 5, 2).double(), ["float64", "float32", ".to("]),
        (torch.ones(4, 5, 2, dtype=torch.long), ["int64", "float32", "x.to(torch.float32)"]),
        (torch.ones(4, 5, 2, device="meta"), ["meta", "cpu", ".to(device)"]),
        ([[1.0, 2.0]], ["list", "tensor"]),
        (None, ["NoneType", "tensor"]),
        (at(NAN, (4, 5, 2), (1, 3, 0)), ["nan", "sample 1, step 3, feature 0", "clean"]),
        (at(-INF, (4, 5, 2), (3, 4, 1)), ["-inf", "sample 3, step 4, feature 1"]),
    ],
)
def test_inputs(x, words, one_line):
    with pytest.raises(InputError) as error:
        network()(x)
    one_line(error, "x ", *words)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (torch.ones(4, 3), ["(4, 3)", "(4, 2, 3)"]),
        (torch.ones(1, 4, 2, 3), ["(1, 4, 2, 3)", "(4, 2, 3)"]),
        (torch.ones(4, 2, 3).double(), ["float64", "float32"]),
        (torch.ones(4, 2, 3, device="meta"), ["meta", "cpu"]),
        (at(NAN, (4, 2, 3), (2, 1, 0)), ["NaN or infinite"]),
        (at(INF, (4, 2, 3), (2, 1, 0)), ["NaN or infinite"]),
        ((torch.ones(4, 3), torch.ones(4, 3)), ["tuple", "(4, 2, 3)"]),
    ],
)
def test_states(state, words, one_line):
    with pytest.raises(InputError) as error:
        network()(torch.ones(4, 5, 2), state)
    one_line(error, "state ", *words)


def test_the_state_of_a_stack_has_a_layer_axis(one_line):
    with pytest.raises(InputError) as error:
        network(num_layers=2)(torch.ones(4, 5, 2), torch.ones(4, 2, 3))
    one_line(error, "(4, 2, 3)", "(2, 4, 2, 3)")


@pytest.mark.parametrize(
    ("timespans", "words"),
    [
        (torch.ones(4), ["(4,)", "(5,)", "(4, 5)"]),
        (torch.ones(5, 4), ["(5, 4)", "(4, 5)"]),
        (torch.ones(4, 5, 1), ["(4, 5, 1)"]),
        (torch.ones(1, 5), ["(1, 5)"]),
        (torch.tensor(1.0), ["()"]),
        (at(-0.5, (5,), 2), ["[2]", "-0.5", "at least 0"]),
        (at(-0.5, (4, 5), (1, 2)), ["[1, 2]", "-0.5"]),
        (at(NAN, (4, 5), (3, 4)), ["[3, 4]", "nan"]),
        (at(INF, (5,), 0), ["[0]", "inf"]),
        ("soon", ["timespans"]),
        (torch.ones(5, dtype=torch.cfloat), ["timespans"]),
        (torch.ones(5, device="meta"), ["meta"]),
    ],
)
def test_timespans(timespans, words, one_line):
    with pytest.raises(InputError) as error:
        network()(torch.ones(4, 5, 2), timespans=timespans)
    one_line(error, "timespans", *words)


@pytest.mark.parametrize(
    ("lengths", "words"),
    [
        ([5, 5, 6, 1], ["lengths[2] is 6", "between 0 and 5"]),
        ([5, 5, -1, 1], ["lengths[2] is -1"]),
        ([5, 5], ["(2,)", "4 integers"]),
        (5, ["()", "4 integers"]),
        ([[5, 5, 5, 5]], ["(1, 4)"]),
        ([5.0, 1.0, 1.0, 1.0], ["float32", "4 integers"]),
        ([True] * 4, ["bool", "4 integers"]),
        (["a", "b", "c", "d"], ["lengths"]),
        ([[1], [1, 2], [3], [4]], ["lengths"]),
    ],
)
def test_lengths(lengths, words, one_line):
    with pytest.raises(InputError) as error:
        network()(torch.ones(4, 5, 2), lengths=lengths)
    one_line(error, "lengths", *words)


def test_a_bad_value_inside_the_lengths_is_found_even_beside_padding(one_line):
    x = at(NAN, (2, 5, 2), (1, 1, 0))
    x[0, 3:] = NAN
    with pytest.raises(InputError) as error:
        network()(x, lengths=[3, 2])
    one_line(error, "sample 1, step 1, feature 0")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dt": 0}, ["dt is 0", "positive"]),
        ({"dt": -0.1}, ["dt is -0.1", "positive"]),
        ({"dt": NAN}, ["dt is nan"]),
        ({"dt": INF}, ["dt is inf"]),
        ({"dt": True}, ["dt is True"]),
        ({"dt": "0.1"}, ["dt is '0.1'"]),
        ({"dt": [0.1, 0.2]}, ["2 values for 1 layers"]),
        ({"gamma": -1.0}, ["gamma is -1.0", "at least 0"]),
        ({"gamma": NAN}, ["gamma is nan", "finite"]),
        ({"gamma": [1.0, 2.0]}, ["gamma", "(2,)", "per channel"]),
        ({"gamma": "a"}, ["gamma", "'a'"]),
        ({"gamma": None}, ["gamma", "None"]),
        ({"epsilon": 0.0, "learned": True}, ["epsilon", "above 0"]),
        ({"num_layers": 0}, ["num_layers is 0", "positive integer"]),
        ({"num_layers": 1.5}, ["num_layers is 1.5"]),
        ({"dropout": 1.0}, ["dropout is 1.0", "below 1"]),
        ({"dropout": -0.1}, ["dropout is -0.1"]),
        ({"dropout": "0.1"}, ["dropout is '0.1'"]),
        ({"substeps": 0}, ["substeps is 0", "positive integer"]),
        ({"substeps": 2.0}, ["substeps is 2.0"]),
        ({"solver": "dopri"}, ["unknown solver 'dopri'", "dopri5"]),
        ({"gradient": "adjont"}, ["unknown gradient", "adjoint"]),
        ({"control": "lineal"}, ["unknown control", "linear"]),
        ({"hidden_size": 0}, ["hidden_size is 0", "positive integer"]),
        ({"hidden_size": 2.5}, ["hidden_size is 2.5"]),
        ({"input_size": True}, ["input_size is True"]),
        ({"alpha": 1.0}, ["'cornn' takes", "not alpha"]),
    ],
)
def test_hyperparameters(settings, words, one_line):
    with pytest.raises(InputError) as error:
        neuralosc.make("cornn", **{"input_size": 2, "hidden_size": 3, **settings})
    one_line(error, *words)


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("lipschitz", {"beta": 1.5}, ["beta is 1.5", "between 0 and 1"]),
        ("lipschitz", {"beta": NAN}, ["beta is nan"]),
        ("lipschitz", {"beta": "x"}, ["beta", "'x'"]),
        ("lipschitz", {"gamma": NAN}, ["gamma is nan"]),
        ("lipschitz", {"alpha": None}, ["alpha is None"]),
        ("lipschitz", {"init_std": -1.0}, ["init_std is -1.0"]),
        ("antisymmetric", {"gamma": INF}, ["gamma is inf"]),
        ("antisymmetric", {"init_std": NAN}, ["init_std is nan"]),
        ("hamiltonian", {"energy_layers": 3}, ["energy_layers is 3", "1 or 2"]),
        ("hamiltonian", {"alpha": -1.0}, ["alpha is -1.0"]),
        ("hamiltonian", {"alpha": "a"}, ["alpha", "'a'"]),
        ("unicornn", {"alpha": -1.0}, ["alpha is -1.0"]),
    ],
)
def test_hyperparameters_of_the_other_networks(name, settings, words, one_line):
    with pytest.raises(InputError) as error:
        neuralosc.make(name, input_size=2, hidden_size=3, **settings)
    one_line(error, *words)


def test_a_message_stays_one_line_for_long_values(one_line):
    for gamma in (-torch.ones(300), [-1.0] * 300):
        with pytest.raises(InputError) as error:
            neuralosc.Oscillator(2, 300, gamma=gamma)
        one_line(error, "gamma", "at least 0")


@pytest.mark.parametrize(
    ("name", "near"), [("cornnn", "cornn"), ("unicorn", "unicornn"), ("LipschitzRNN", "lipschitz")]
)
def test_unknown_models(name, near, one_line):
    for call in (neuralosc.model, lambda n: neuralosc.make(n, input_size=1, hidden_size=1)):
        with pytest.raises(solvers.UnknownNameError) as error:
            call(name)
        one_line(error, f"unknown model {name!r}", f"'{near}'", "known: antisymmetric, cayley, cfc, cornn")
    with pytest.raises(InputError):
        neuralosc.model([name])


@pytest.mark.parametrize(
    ("name", "solver", "words"),
    [
        ("lipschitz", "stormer_verlet", ["partitioned", "Lipschitz", "euler", "imex_euler"]),
        ("lipschitz", "symplectic_euler", ["partitioned", "force(t, q, p, u)"]),
        ("antisymmetric", "imex_euler", ["semilinear", "Antisymmetric", "rk4"]),
        ("unicornn", "imex_euler", ["semilinear", "HamiltonianOscillator", "stormer_verlet"]),
        ("hamiltonian", "imex_euler", ["semilinear", "DenseHamiltonian"]),
    ],
)
def test_pairings_that_cannot_work(name, solver, words, one_line):
    rnn = neuralosc.make(name, input_size=2, hidden_size=3)
    before = rnn.solver
    for call in (
        lambda: rnn.with_solver(solver),
        lambda: neuralosc.make(name, input_size=2, hidden_size=3, solver=solver),
        lambda: neuralosc.ContinuousRNN(rnn.field, solver),
    ):
        with pytest.raises(solvers.PairingError) as error:
            call()
        one_line(error, "needs", "use one of", *words)
    assert rnn.solver is before


def test_the_gated_lipschitz_field_is_not_semilinear(one_line):
    with pytest.raises(solvers.PairingError) as error:
        neuralosc.LipschitzRNN(2, 3, gated=True, solver="imex_euler")
    one_line(error, "semilinear", "Lipschitz")


@pytest.mark.parametrize("where", ["forward", "solve"])
def test_a_state_that_explodes(where, one_line):
    rnn = neuralosc.LipschitzRNN(2, 3, beta=0.0, dt=10.0, init_std=30.0)
    x = torch.zeros(4, 60, 2)
    x[2] = 1.0
    with pytest.raises(solvers.NonFiniteStateError) as error:
        (rnn if where == "forward" else rnn.solve)(x)
    one_line(error, "sample 2", "step", "time", "smaller dt", "implicit or adaptive solver")
    assert error.value.sample == 2 and error.value.time == pytest.approx(10.0 * error.value.step)


def test_the_layer_in_which_a_state_explodes_does_not_matter():
    rnn = neuralosc.LipschitzRNN(2, 3, beta=0.0, dt=[0.01, 1e3], num_layers=2, init_std=30.0)
    with pytest.raises(solvers.NonFiniteStateError):
        rnn(torch.ones(2, 60, 2))


def test_an_adaptive_solver_that_gives_up_in_forward(one_line):
    rnn = network(epsilon=4e3).with_solver(solvers.get("dopri5", max_steps=20), dt=1.0)
    with pytest.raises(solvers.StepLimitError) as error:
        rnn(torch.ones(2, 5, 2))
    one_line(error, "'dopri5'", "max_steps = 20", "step 0", "time 0", "implicit solver if the field is stiff")


def test_an_adaptive_solver_that_gives_up_in_the_backward_pass(one_line):
    """Strong damping forwards is strong growth backwards: the adjoint cannot follow, and says where."""
    rnn = network(epsilon=300.0).with_solver(
        solvers.get("dopri5", rtol=1e-4, atol=1e-5, max_steps=150), dt=1.0, gradient="adjoint"
    )
    output, _ = rnn(torch.ones(2, 3, 2))
    with pytest.raises(solvers.NumericalError) as error:
        output.sum().backward()
    one_line(error, "'dopri5'", "step 2", "time 2")
    assert error.value.step == 2


def test_a_failed_call_leaves_the_network_usable(make_field):
    rnn = ContinuousRNN(make_field("oscillator").float(), "rk4", 0.1)
    expected = rnn(torch.ones(2, 3, 2))[0]
    with pytest.raises(InputError):
        rnn(at(NAN, (2, 3, 2), (0, 0, 0)))
    with pytest.raises(solvers.NumericalError):
        rnn.with_solver(solvers.get("dopri5", max_steps=1))(torch.ones(2, 3, 2))
    assert torch.equal(rnn(torch.ones(2, 3, 2))[0], expected)
