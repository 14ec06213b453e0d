"""Weights that torch computes from others: pruned, normalized, orthogonal, by hooks or by parametrizations."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import neuralosc
import solvers

NAMES = [card.name for card in neuralosc.models()]
#: Inner maps as small as the outer ones: rounding must not grow from sample to sample.
SIZES = {"odernn": {"units": 4}}


def pruned(module, name):
    prune.l1_unstructured(module, name, 0.5)


def spectral(module, name):
    """Torch's hook starts at random directions, along which a weight may be small and its multiple very large."""
    torch.nn.utils.spectral_norm(module, name)
    for hook in module._forward_pre_hooks.values():
        if getattr(hook, "name", None) == name:
            for _ in range(15):
                hook.compute_weight(module, do_power_iteration=True)


def old(how):
    def apply(module, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            how(module, name)

    return apply


WAYS = {
    "prune": pruned,
    "weight_norm_of_hooks": old(torch.nn.utils.weight_norm),
    "spectral_norm_of_hooks": old(spectral),
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


def by_hand(way, module, name):
    """The weight that a way makes of what it stores, in formulas."""
    if way == "prune":
        return getattr(module, f"{name}_orig") * getattr(module, f"{name}_mask")
    if way == "weight_norm_of_hooks":
        g, v = getattr(module, f"{name}_g"), getattr(module, f"{name}_v")
        return g * v / v.norm(dim=1, keepdim=True)
    if way == "spectral_norm_of_hooks":
        whole, u, v = (getattr(module, f"{name}_{part}") for part in ("orig", "u", "v"))
        return whole / (u @ whole @ v)
    stored = module.parametrizations[name]
    if way == "weight_norm":
        g, v = stored.original0, stored.original1
        return g * v / v.norm(dim=1, keepdim=True)
    if way == "spectral_norm":
        return stored.original / (stored[0]._u @ stored.original @ stored[0]._v)
    return stored[0](stored.original)


def matrices(rnn):
    """Every module and the name of a matrix in it, those of named networks' own classes and of their linear maps."""
    named = [(module, name) for module in rnn.modules() for name, p in module.named_parameters(recurse=False)]
    return [(module, name) for module, name in named if getattr(module, name).dim() == 2]


def network(name):
    """With weights of which no row is zero, which has no norm to divide by."""
    torch.manual_seed(3)
    rnn = neuralosc.make(name, input_size=2, hidden_size=4, **SIZES.get(name, {})).double()
    for module, tensor in matrices(rnn):
        nn.init.normal_(getattr(module, tensor), std=0.3)
    return rnn


def both(name, way):
    """A network whose matrices are all reparametrized, and one that has the weights computed by hand."""
    rnn, expected = network(name).eval(), network(name).eval()
    places = list(zip(matrices(rnn), matrices(expected), strict=True))
    for (module, tensor), _ in places:
        WAYS[way](module, tensor)
    rnn.eval()
    with torch.no_grad():
        # What is stored changes after it was made, as by an optimizer or `load_state_dict`.
        for stored in rnn.parameters():
            stored.mul_(1.25)
        expected.load_state_dict(
            {k: v for k, v in rnn.state_dict().items() if k in expected.state_dict()}, strict=False
        )
        for (module, tensor), (place, _) in places:
            getattr(place, tensor).copy_(by_hand(way, module, tensor))
    return rnn, expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_the_weight_is_the_one_computed_by_hand(name, way):
    rnn, expected = both(name, way)
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    with solvers.backend("plain"):
        torch.testing.assert_close(rnn(x), expected(x), rtol=1e-9, atol=1e-11)
        if hasattr(rnn, "step"):
            steps = [one.step(x[:, 0]) for one in (rnn, expected)]
            found, wanted = ((output, getattr(after, "state", after)) for output, after in steps)
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("way", [pytest.param(w, marks=[] if w == "prune" else [pytest.mark.slow]) for w in WAYS])
@pytest.mark.parametrize("name", NAMES)
def test_so_it_is_on_the_fast_path(name, way):
    rnn, expected = both(name, way)
    x = torch.randn(2, solvers.run.choice.WORTHWHILE, 2, dtype=torch.float64)
    output = rnn(x)
    with solvers.backend("plain"):
        torch.testing.assert_close(output, expected(x), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on(name, way):
    x = torch.randn(3, 12, 2, dtype=torch.float64)
    rnn = network(name)
    for module, tensor in matrices(rnn):
        WAYS[way](module, tensor)
    optimizer = torch.optim.SGD(rnn.parameters(), lr=1e-2)
    before = [p.detach().clone() for p in rnn.parameters()]
    for _ in range(3):
        optimizer.zero_grad()
        rnn(x)[0].square().mean().backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in rnn.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, rnn.parameters(), strict=True))


class Counting(neuralosc.VectorField):
    """A field of a user's own whose matrix is its own parameter, and which counts its evaluations."""

    def __init__(self):
        super().__init__(2, 4)
        self.V, self.W, self.nfe = nn.Linear(2, 4), nn.Parameter(0.3 * torch.randn(4, 4)), 0

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        self.nfe += 1
        (h,) = state.unbind(-2)
        return (torch.tanh(h @ self.W + u) - h).unsqueeze(-2)


@pytest.mark.parametrize("how", [parametrizations.orthogonal, parametrizations.spectral_norm])
def test_a_matrix_of_a_field_of_ones_own(how):
    torch.manual_seed(0)
    x, field = torch.randn(2, 20, 2), Counting()
    how(field, "W")
    field.eval()
    rnn = neuralosc.ContinuousRNN(field, "euler", 0.1)
    h, W = torch.zeros(2, 4), field.W.detach()
    for u in field.V(x).unbind(1):
        h = h + 0.1 * (torch.tanh(h @ W + u) - h)
    for backend in ("plain", "auto"):
        with solvers.backend(backend):
            torch.testing.assert_close(rnn(x)[0][:, -1], h)


@pytest.mark.parametrize("backend", ["plain", "auto"])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_count_of_evaluations_is_kept(backend, noisy):
    field = Counting()
    rnn = neuralosc.ContinuousRNN(neuralosc.Noisy(field) if noisy else field, "rk4", 0.1)
    with solvers.backend(backend):
        solution = rnn.solve(torch.randn(2, 20, 2))
    assert field.nfe == solution.evaluations == 80
