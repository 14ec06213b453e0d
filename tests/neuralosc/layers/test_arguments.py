"""What a network is given by name, or is not: options of its solver, arguments of others, typing errors."""

import pytest
import torch

import neuralosc
import solvers

ADAPTIVE = {"rtol": 1e-5, "atol": 1e-7}


def field():
    return neuralosc.Oscillator(2, 4)


WAYS = {
    "with_solver": lambda **o: neuralosc.CoRNN(2, 4).with_solver("dopri5", **o),
    "of blocks": lambda **o: neuralosc.make("linoss", input_size=2, hidden_size=4).with_solver("dopri5", **o),
    "of a layer": lambda **o: neuralosc.LinOSS(4, 3).with_solver("dopri5", **o),
    "make": lambda **o: neuralosc.make("cornn", input_size=2, hidden_size=4, solver="dopri5", **o),
    "make blocks": lambda **o: neuralosc.make("linoss", input_size=2, hidden_size=4, solver="dopri5", **o),
    "named": lambda **o: neuralosc.CoRNN(2, 4, solver="dopri5", **o),
    "torch's twin": lambda **o: neuralosc.GRU(2, 4, solver="dopri5", **o),
    "constructor": lambda **o: neuralosc.ContinuousRNN(field(), "dopri5", **o),
    "constructor of blocks": lambda **o: neuralosc.LinOSSNetwork(2, 4, solver="dopri5", **o),
}


@pytest.mark.parametrize("way", WAYS)
def test_options_of_the_solver_pass_through(way, one_line):
    rnn = WAYS[way](**ADAPTIVE)
    assert rnn.solver == solvers.get("dopri5", **ADAPTIVE)
    if rnn.config is not None:
        settings = dict(rnn.config)
        assert neuralosc.make(settings.pop("model"), **settings).solver == rnn.solver
    with pytest.raises(neuralosc.InputError) as caught:
        WAYS[way](rtoll=1e-5)
    one_line(caught, "rtoll", "did you mean rtol")
    with pytest.raises(neuralosc.InputError) as caught:
        WAYS[way](implicit_terms="both")
    one_line(caught, "dopri5", "implicit_terms", "rtol")
    with pytest.raises(neuralosc.InputError, match="rtol"):
        WAYS[way](rtol=-1.0)


def test_the_option_of_the_standard_solver():
    assert neuralosc.NoisyRNN(2, 4, noise_seed=3).solver.noise_seed == 3
    assert neuralosc.make("noisy", input_size=2, hidden_size=4, noise_seed=3).solver.noise_seed == 3


NAMES = [card.name for card in neuralosc.models()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("batch_first", "batch first"),
        ("proj_size", "Readout"),
        ("num_layer", "num_layers"),
        ("qqqq", "leave it out"),
    ],
)
def test_arguments_of_others_and_typing_errors(name, wrong, words, one_line):
    for make in (neuralosc.model(name).make, lambda **all_: neuralosc.make(name, **all_)):
        with pytest.raises(neuralosc.InputError) as caught:
            make(input_size=2, hidden_size=4, **{wrong: 1})
        one_line(caught, wrong, words)


def test_hints(one_line):
    for wrong, words in {"time_step": "dt", "eps": "epsilon", "device": ".to(device)"}.items():
        with pytest.raises(neuralosc.InputError) as caught:
            neuralosc.CoRNN(2, 4, **{wrong: 0.1})
        one_line(caught, wrong, words)


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_the_sizes_is_given_by_name(name):
    with pytest.raises(TypeError, match="positional"):
        neuralosc.model(name).make(2, 4, 2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", ["input_size", "hidden_size"])
def test_a_size_that_is_none(name, size, one_line):
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.make(name, **{"input_size": 2, "hidden_size": 4, size: None})
    one_line(caught, size, "None", "positive integer")


def test_a_size_of_a_field_that_is_none(one_line):
    for make in (neuralosc.Oscillator, neuralosc.Relaxation, neuralosc.Orthogonal, neuralosc.LinearOscillator):
        for sizes in ((2, None), (None, 4)):
            with pytest.raises(neuralosc.InputError) as caught:
                make(*sizes)
            one_line(caught, "_size is None")


@pytest.mark.parametrize("name", ["cornn", "linoss", "lstm"])
def test_tensors_that_hold_no_values(name, one_line):
    rnn, x = neuralosc.make(name, input_size=2, hidden_size=4).eval(), torch.randn(3, 5, 2)
    nested = torch.nested.nested_tensor([torch.randn(5, 2), torch.randn(3, 2)], layout=torch.jagged)
    cases = [
        (x.to_sparse(), "to_dense"),
        (nested, "lengths"),
        (x.to("meta"), "meta"),
        (x.long(), "x.to(torch.float32)"),
    ]
    for given, word in cases:
        with pytest.raises(neuralosc.InputError) as caught:
            rnn(given)
        assert "rnn.to(torch.int64)" not in one_line(caught, word)
    if name == "linoss":
        for given in (None, x, x[0, 0], x[:, 0].double(), torch.ones(3, 5), torch.full((3, 2), float("nan")), nested):
            with pytest.raises(neuralosc.InputError) as caught:
                rnn.step(given)
            one_line(caught, "x ")


@pytest.mark.parametrize("name", [card.name for card in neuralosc.models() if card.field])
def test_a_weight_that_is_no_number_is_named(name, one_line):
    x = torch.randn(3, 5, 2)
    for place in range(len(list(neuralosc.make(name, input_size=2, hidden_size=4).parameters()))):
        rnn = neuralosc.make(name, input_size=2, hidden_size=4).eval()
        if rnn.solver.stochastic:
            rnn = rnn.with_solver("euler")
        broken, parameter = list(rnn.named_parameters())[place]
        with torch.no_grad():
            parameter.fill_(float("nan"))
        with pytest.raises(solvers.NonFiniteStateError) as caught:
            rnn(x)
        one_line(caught, broken.split("rnn.")[-1], "finite weights")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("time_spans", "did you mean timespans?"), ("hx", "it is called state"), ("mask", "lengths"), ("zzz", "leave it")],
)
@pytest.mark.parametrize("name", ["cornn", "linoss", "gru", "lstm"])
def test_keywords_of_a_call(name, wrong, words, one_line):
    rnn, x = neuralosc.make(name, input_size=2, hidden_size=4), torch.randn(3, 5, 2)
    with pytest.raises(neuralosc.InputError) as caught:
        rnn(x, **{wrong: torch.ones(3, 5)})
    one_line(caught, "takes x, state, timespans, lengths", wrong, words)


def test_a_layer_of_ones_own_may_take_more():
    class Scaled(neuralosc.ContinuousRNN):
        def forward(self, x, state=None, timespans=None, lengths=None, gain=1.0):
            return super().forward(gain * x, state, timespans, lengths)

    rnn, x = neuralosc.CoRNN(2, 4), torch.randn(3, 5, 2)
    rnn.__class__ = Scaled
    torch.testing.assert_close(rnn(x, gain=2.0)[0], rnn(2 * x)[0])
