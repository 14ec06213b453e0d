"""Published weights of networks of irregular series: every key counts, none is missed, none is left over."""

import pytest
import torch
from torch import nn

import neuralosc
from neuralosc import InputError
from tests.neuralosc.state_dicts import state_dict

F64 = torch.float64
CASES = {
    "odernn": ("odernn", {}),
    "latent_ode": ("latent_ode", {"solver": "rk4_38"}),
    "odelstm_rk4": ("odelstm", {"solver": "rk4"}),
    "grud_masked": ("grud", {"empirical_mean": [0.5, -1.0, 2.0]}),
    "gruodebayes_full": ("gruodebayes", {"delta_t": 0.2, "logvar": True}),
    "gruodebayes_minimal": ("gruodebayes", {"delta_t": 0.2, "logvar": False}),
    "gruodebayes_full_autonomous": ("gruodebayes", {"delta_t": 0.2, "logvar": True}),
    "gruodebayes_minimal_autonomous": ("gruodebayes", {"delta_t": 0.2, "logvar": True}),
}


def loaded(name, weights, settings):
    """All numbers of what is loaded."""
    parts = [part for part in neuralosc.from_reference(name, weights, **settings) if part is not None]
    return torch.cat([value.flatten() for part in parts for value in part.state_dict().values()])


@pytest.fixture(params=CASES, name="case")
def _case(request, golden):
    name, settings = CASES[request.param]
    return name, state_dict(name, golden(request.param)), settings


def test_every_key_counts_and_none_may_be_missing(case, one_line):
    name, weights, settings = case
    expected = loaded(name, weights, settings)
    for key, value in weights.items():
        other = loaded(name, {**weights, key: value + 1}, settings)
        assert other.shape == expected.shape and not torch.equal(other, expected), key
        with pytest.raises(InputError) as error:
            neuralosc.from_reference(name, {k: v for k, v in weights.items() if k != key}, **settings)
        one_line(error, name, "state dict")
        with pytest.raises(InputError) as error:
            neuralosc.from_reference(name, {**weights, key: torch.zeros(2, 5, 3, dtype=F64)}, **settings)
        one_line(error)
    with pytest.raises(InputError) as error:
        neuralosc.from_reference(name, {**weights, "extra": torch.zeros(1)}, **settings)
    one_line(error, "unknown keys extra")
    with pytest.raises(InputError) as error:
        neuralosc.from_reference(name, {}, **settings)
    one_line(error, name, "found no keys")


@pytest.mark.parametrize("key", ["solver", "empirical_mean", "delta_t", "logvar"])
def test_what_the_weights_do_not_say_must_be_said(key, golden, one_line):
    for file, (name, settings) in CASES.items():
        if key in settings and name != "latent_ode":
            others = {k: v for k, v in settings.items() if k != key}
            with pytest.raises(InputError) as error:
                neuralosc.from_reference(name, state_dict(name, golden(file)), **others)
            one_line(error, name, "needs the settings", key)


def test_what_the_published_classes_hold_besides(golden, one_line):
    """A net that is registered twice, maps that nothing uses, a buffer that is the identity, a classifier."""
    weights = state_dict("odernn", golden("odernn"))
    expected, heads = neuralosc.from_reference("odernn", weights)
    assert list(heads) == ["decoder"]
    net = {key: value for key, value in weights.items() if key.startswith("z0_diffeq_solver.")}
    whole = weights | {f"ode_gru.{key}": value.clone() for key, value in net.items()}
    classifier = nn.Sequential(nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 1)).double()
    whole |= {f"classifier.{key}": value for key, value in classifier.state_dict().items()}
    whole |= {f"ode_gru.transform_z0.{key}": value for key, value in classifier.state_dict().items()}
    rnn, heads = neuralosc.from_reference("odernn", whole, max_dt=0.1)
    assert rnn.max_dt == 0.1 and all(torch.equal(v, rnn.state_dict()[k]) for k, v in expected.state_dict().items())
    x = torch.randn(2, 6, dtype=F64)
    torch.testing.assert_close(heads["classifier"](x), classifier(x), rtol=0, atol=0)
    whole["ode_gru.z0_diffeq_solver.ode_func.gradient_net.0.bias"] += 1
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("odernn", whole)
    one_line(error, "ode_gru.z0_diffeq_solver.ode_func.gradient_net.0.bias", "same module")

    mean, weights = [0.5, -1.0, 2.0], state_dict("grud", golden("grud_masked"))
    expected = loaded("grud", weights, {"empirical_mean": mean})
    whole = {f"model.{key}": value for key, value in weights.items()} | {"model.temp_decay_x.m": torch.eye(3)}
    whole |= {f"classifier.{key}": value for key, value in nn.Linear(7, 2).double().state_dict().items()}
    assert torch.equal(loaded("grud", whole, {"empirical_mean": mean})[: len(expected)], expected)
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("grud", {**whole, "model.temp_decay_x.m": torch.ones(3, 3)}, empirical_mean=mean)
    one_line(error, "model.temp_decay_x.m", "identity")
    with pytest.raises(InputError) as error:
        neuralosc.from_reference("grud", weights, empirical_mean=[1.0])
    one_line(error, "empirical_mean", "(3,)")

    weights = state_dict("gruodebayes", golden("gruodebayes_full"))
    whole = weights | {f"gru_obs.gru_debug.{key}": value for key, value in nn.GRUCell(12, 7).state_dict().items()}
    settings = {"delta_t": 0.2, "logvar": True}
    assert torch.equal(loaded("gruodebayes", whole, settings), loaded("gruodebayes", weights, settings))


@pytest.mark.parametrize(
    ("file", "setting"), [("odernn", {"update": "gru"}), ("gruodebayes_full_autonomous", {"impute": True})]
)
def test_a_setting_that_the_weights_decide_is_refused(file, setting, golden, one_line):
    name, settings = CASES[file]
    with pytest.raises(InputError) as error:
        neuralosc.from_reference(name, state_dict(name, golden(file)), **settings, **setting)
    one_line(error, name, *setting)
