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
