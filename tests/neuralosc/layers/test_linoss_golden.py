"""The published LinOSS layers through the public layer: outputs and every gradient to 1e-9 in float64."""

import pytest
import torch

import neuralosc
import solvers
from neuralosc.fields import discretizations

F64 = torch.float64
TOLERANCE = 1e-9
GOLDEN = ["linoss_IM", "linoss_IMEX", *(f"dlinoss_{name}" for name in discretizations.SOLVERS)]


def state_dict(g):
    names = {"A_diag": "A", "G_diag": "G", "steps": "steps", "B": "B", "C": "C", "D": "D"}
    return {published: g[key] for published, key in names.items() if key in g}


def loaded(name, golden, **settings):
    g = golden(name)
    projection = {"projection": "oscillatory"} if "G" in g else {}
    layer, readout = neuralosc.from_reference(
        "linoss", state_dict(g), discretization=name.split("_")[1], **projection, **settings
    )
    assert readout is None
    return g, layer


def published(layer, of):
    """What `of` gives for our parameters, under the published names and in the published layout."""
    field = layer.field
    heads, n = field.heads, field.hidden_size // 2
    values = {"A": of(field.A).view(heads, -1), "steps": of(field.steps).view(heads, -1)}
    values["B"] = of(field.B).view(2, heads, n // heads, -1).movedim(0, -1)
    values["C"] = of(layer.C).view(heads, -1, 2, n // heads).movedim(2, -1)
    values["D"] = of(layer.D).view(heads, -1)
    return values if field.G is None else {**values, "G": of(field.G).view(heads, -1)}


@pytest.mark.parametrize("backend", ["plain", "compiled"])
@pytest.mark.parametrize("name", GOLDEN)
def test_outputs_and_every_gradient(name, backend, golden, relative_error):
    g, layer = loaded(name, golden)
    u = g["u"].reshape(-1, *g["u"].shape[-2:])
    with solvers.backend(backend):
        y, state = layer(u)
    assert relative_error(y.view(g["y"].shape), g["y"]) <= TOLERANCE
    assert state.shape == (len(u), 2, 12) and y.dtype == F64
    (y.view(g["y"].shape) * g["loss_weight"]).sum().backward()
    gradients = published(layer, lambda parameter: parameter.grad)
    assert len(gradients) == len(list(layer.parameters()))
    for key, gradient in gradients.items():
        assert relative_error(gradient.reshape(g[key].shape), g[f"grad_{key}"]) <= TOLERANCE, key


@pytest.mark.parametrize("name", [name for name in GOLDEN if name.startswith("d")])
def test_projected_parameters(name, golden, relative_error):
    g, layer = loaded(name, golden)
    constants = layer.field.constants
    for key, value in (("A", g["A_projected"]), ("G", g["G_projected"])):
        assert relative_error(constants[key], value[0].repeat(2)) <= 1e-12


def test_state_dicts_with_and_without_a_head_axis_and_complex_ones_are_the_same_layer(golden):
    g, layer = loaded("dlinoss_IMEX", golden)
    flat = {key: value.squeeze(0) for key, value in state_dict(g).items()}
    for key in ("B", "C"):
        flat[key] = torch.view_as_complex(flat[key].contiguous())
    again, _ = neuralosc.from_reference("linoss", flat, discretization="IMEX", projection="oscillatory")
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters(), strict=True))


def test_heads_are_layers_over_parts_of_the_features(golden):
    """Two published layers, put side by side as heads of one."""
    parts, layers = zip(*(loaded(f"dlinoss_{name}", golden, substeps=2) for name in ("IMEX", "IMEX")), strict=True)
    second = {key: -0.9 * value if key in "BCD" else 1.1 * value for key, value in state_dict(parts[1]).items()}
    settings = {"discretization": "IMEX", "projection": "oscillatory", "substeps": 2}
    other, _ = neuralosc.from_reference("linoss", second, **settings)
    both = {key: torch.cat((value, second[key])) for key, value in state_dict(parts[0]).items()}
    layer, _ = neuralosc.from_reference("linoss", both, **settings)
    assert (layer.field.heads, layer.input_size, layer.hidden_size) == (2, 8, 8)
    u = torch.randn(3, 20, 8, dtype=F64)
    expected = torch.cat((layers[0](u[..., :4])[0], other(u[..., 4:])[0]), -1)
    torch.testing.assert_close(layer(u)[0], expected, rtol=1e-12, atol=1e-12)


def published_projection(name, A, G, h):
    """The published one: A low + relu(A - low) - relu(A - high), G first."""

    def between(x, low, high=None):
        clamped = low + torch.relu(x - low)
        return clamped if high is None else clamped - torch.relu(x - high)

    if name == "IM":
        return between(A, torch.maximum(-G / h, G**2 / 4)), G
    if name == "IMEX":
        G = torch.relu(G)
        root = 2 * torch.sqrt(1 + h * G)
        return between(A, (2 + h * G - root) / h**2, (2 + h * G + root) / h**2), G
    if name == "EX":
        G = between(G, torch.zeros(()), 4 / h)
        return between(A, G**2 / 4, G / h), G
    G = between(G, torch.zeros(()), 1 / h)
    if name == "IMEX3":
        return between(A, G**2 / (4 * (1 - h * G))), G
    root = 2 * torch.sqrt((1 - h * G).clamp_min(0))
    return between(A, (2 - h * G - root) / h**2, (2 - h * G + root) / h**2), G


def at_borders(name, h):
    """Raw A and G inside the region, just inside its borders, on them and far outside."""
    fractions = torch.tensor([-3.0, 0.0, 0.2, 0.7, 0.99, 0.994, 0.9999, 1.0, 1.0001, 5.0], dtype=F64)
    end = {"EX": 4 / h, "IMEX2": 1 / h, "IMEX3": 1 / h}.get(name, 2.0)
    # At the end of G itself the published A of IMEX3 is infinite.
    dampings = [f * end for f in fractions if name != "IMEX3" or f < 1]
    pairs = []
    for G in dampings:
        high = published_projection(name, torch.tensor(1e6, dtype=F64), G, h)[0]
        pairs += [(f * high, G) for f in fractions]
    return (torch.stack(values) for values in zip(*pairs, strict=True))


@pytest.mark.parametrize("name", discretizations.SOLVERS)
def test_borders_of_the_region_are_the_published_ones(name):
    """The parameters, and the positions of a layer, up to the border and beyond it."""
    steps = torch.tensor(0.3, dtype=F64)
    h = torch.sigmoid(steps)
    A, G = at_borders(name, h)
    n = len(A)
    u = torch.ones(1, 30, 1, dtype=F64)
    raw = {"A_diag": A, "G_diag": G, "steps": steps.expand(n), "B": torch.ones(n, 1, 2, dtype=F64)}
    layer, _ = neuralosc.from_reference(
        "linoss",
        {**raw, "C": torch.ones(1, n, 2, dtype=F64), "D": torch.zeros(1, dtype=F64)},
        discretization=name,
        projection="oscillatory",
    )
    expected = published_projection(name, A, G, h)
    for key, value in zip("AG", expected, strict=True):
        # The published root of 1 - h G is that of a rounding error where G is at its end.
        torch.testing.assert_close(layer.field.constants[key][:n], value, rtol=1e-7, atol=1e-9)
    positions, (z, y) = [], torch.zeros(2, n, dtype=F64)
    A, G = expected
    divisor = {"IM": 1 + h * G + h**2 * A, "IMEX": 1 + h * G, "IMEX3": 1 + h**2 * A}.get(name, 1.0)
    for q in u[0]:
        damped = z if name in ("IM", "IMEX") else (1 - h * G) * z
        after = (damped - h * A * y + h * q) / divisor
        y = y + h * (z if name == "EX" else after)
        z = after
        positions.append(y)
    positions = torch.stack(positions)
    torch.testing.assert_close(layer.solve(u).output[0, :, :n], positions, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", discretizations.SOLVERS)
def test_a_margin_keeps_away_from_upper_ends_alone(name):
    h = torch.tensor(0.6, dtype=F64)
    A, G = at_borders(name, h)
    whole = discretizations.projected("oscillatory", name, A, G, h)
    kept = discretizations.projected("oscillatory", name, A, G, h, margin=0.1)
    same = (whole[0] == kept[0]) & (whole[1] == kept[1])
    assert int(same.sum()) > 0 and (name == "IM" or int(same.sum()) < len(A))
    assert bool((kept[1] <= whole[1]).all())
    field = neuralosc.LinearOscillator(1, 2, True, projection="oscillatory", discretization="EX", projection_margin=0.1)
    with torch.no_grad():
        field.A.fill_(1e3), field.G.fill_(1.0)
    torch.testing.assert_close(field.constants["A"], 0.9 / field.constants["time_scale"])


def test_a_trained_factor_of_the_input_belongs_to_its_map(golden):
    g, layer = loaded("dlinoss_IMEX", golden)
    logarithm = torch.linspace(-1, 1, 6, dtype=F64).view_as(g["A"])
    scaled, _ = neuralosc.from_reference(
        "linoss", {**state_dict(g), "gamma_log": logarithm}, discretization="IMEX", projection="oscillatory"
    )
    expected = layer.field.B.view(2, 6, -1) * logarithm.exp().view(6, 1)
    torch.testing.assert_close(scaled.field.B.view_as(expected), expected, rtol=1e-15, atol=0)
    with pytest.raises(neuralosc.InputError, match="gamma_log"):
        neuralosc.from_reference("linoss", {**state_dict(g), "gamma_log": torch.zeros(5)}, discretization="IMEX")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"B": None}, ("B", "key")),
        ({"x0": torch.zeros(6)}, ("x0", "unknown")),
        ({"C": torch.zeros(1, 6, 4, 2)}, ("C", "(1, 6, 4, 2)")),
        ({"B": torch.zeros(1, 6, 4)}, ("B", "(1, 6, 4)", "2")),
        ({"steps": torch.zeros(1, 5)}, ("steps", "(5,)")),
    ],
)
def test_state_dicts_that_do_not_fit_are_refused(change, words, golden, one_line):
    tensors = {**state_dict(golden("dlinoss_IM")), **change}
    with pytest.raises(neuralosc.InputError) as caught:
        neuralosc.from_reference("linoss", {k: v for k, v in tensors.items() if v is not None}, discretization="IM")
    one_line(caught, *words)
