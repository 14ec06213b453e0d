"""Noise for any field: what makes an equation of a network a stochastic one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from neuralosc.arguments import flag
from neuralosc.field import VectorField
from neuralosc.fields.parameters import Coefficient, Value
from solvers.errors import InputError
from solvers.numerics.linear import LinearOperator
from solvers.protocol import Time

if TYPE_CHECKING:
    from typing_extensions import Self

#: What a bound field has of its own, which it must not take from the field inside.
_SLOTS = ("_bound", "_operators", "_inner")


class Noisy(VectorField):
    """A field with noise in every channel, additive, multiplicative or both.

        dx = f(t, x, u) dt + (additive + multiplicative * m) dW,    m = x, or f(t, x, u)

    W has independent entries. With two independent motions, one for each noise, the two add up like their squares:

        dx = f(t, x, u) dt + sqrt(additive^2 + (multiplicative * m)^2) dW

    which has the same law as dx = f dt + additive dW1 + multiplicative * m dW2.

    A solver for equations with noise (`euler_maruyama`, `milstein`, ...) takes all of it; under every other solver
    this is the field alone, which is how a noisy network is evaluated. It has the structure of its field, whose parts
    it passes on, and "stochastic" besides.

    Args:
        field: the drift f.
        additive: standard deviation per square root of time, a number or one per channel, at least 0.
        multiplicative: likewise, per unit of m.
        multiplies: "state" or "drift". The drift is the form of the paper; its noise in a channel sees other channels,
            so that no method has a strong order above 1/2 then.
        component: the only component that noise enters, 1 for the velocity of an oscillator; every one when None.
        learned: train `additive` and `multiplicative`, kept positive.
        independent: the two noises have motions of their own.
        training_only: no noise in evaluation mode, under any solver.

    Raises:
        InputError: values out of range, or a field that has noise already.

    Source: Lim, Erichson, Hodgkinson, Mahoney, Noisy Recurrent Neural Networks, NeurIPS 2021, which adds
    sigma_1 I + sigma_2 diag(f).
    """

    __slots__ = ("_inner",)

    def __init__(
        self,
        field: VectorField,
        additive: Value = 0.0,
        multiplicative: Value = 0.0,
        multiplies: Literal["state", "drift"] = "state",
        component: int | None = None,
        learned: bool = False,
        independent: bool = False,
        training_only: bool = False,
    ) -> None:
        if not isinstance(field, VectorField):
            raise InputError(f"field is a {type(field).__name__}, expected a neuralosc.VectorField")
        if "stochastic" in field.structure:
            raise InputError(f"{type(field).__name__} has noise already: give the field without it")
        super().__init__(field.input_size, field.hidden_size, field.components)
        if multiplies not in ("state", "drift"):
            raise InputError(f"multiplies is {multiplies!r}, expected 'state' or 'drift'")
        known = isinstance(component, int) and not isinstance(component, bool) and 0 <= component < field.components
        if component is not None and not known:
            raise InputError(f"component is {component!r}, expected None or an integer below {field.components}")
        self._modules["field"] = field
        self.multiplies, self.component = multiplies, component
        self.independent, self.training_only = flag("independent", independent), flag("training_only", training_only)
        self.additive = Coefficient("additive", additive, field.hidden_size, learned)
        self.multiplicative = Coefficient("multiplicative", multiplicative, field.hidden_size, learned)

    def __getattr__(self, name: str) -> Any:
        """The field's own parts: velocity, force, operator, energy, ..."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if "field" not in modules or name.startswith("__") or name in _SLOTS:
                raise
            return getattr(modules["field"], name)

    @property
    def timed(self) -> bool:  # type: ignore[override]
        """Whether the field looks at t."""
        return self.field.timed

    @property
    def structure(self) -> frozenset[str]:
        """That of the field, and stochastic."""
        return self.field.structure | {"stochastic"}

    def drive(self, x: Tensor) -> Tensor:
        """The input current of the field."""
        return self.field.drive(x)

    def initial_state(self, x: Tensor) -> Tensor | None:
        """That of the field."""
        return self.field.initial_state(x)

    def forward(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The drift."""
        drift: Tensor = self.field(t, state, u)
        return drift

    def diffusion(self, t: Time, state: Tensor, u: Tensor) -> Tensor:
        """The noise g of each entry of the state, `(*batch, components, hidden)`."""
        if self.training_only and not self.training:
            return torch.zeros_like(state)
        constants = self.constants
        additive, multiplicative = constants["noise.additive"], constants["noise.multiplicative"]
        product = multiplicative * (state if self.multiplies == "state" else self.field(t, state, u))
        noise: Tensor = _root_sum_square(additive, product) if self.independent else additive + product
        if self.component is None:
            return noise
        parts = [torch.zeros_like(part) for part in state.unbind(-2)]
        parts[self.component] = noise.unbind(-2)[self.component]
        return torch.stack(parts, dim=-2)

    def time_scale(self) -> Time | None:
        """That of the field: the noise runs on its clock."""
        return self.field.time_scale()

    def prepare(self) -> dict[str, Any]:
        """What the field prepares, and the coefficients of the noise."""
        noise = {"noise.additive": self.additive(), "noise.multiplicative": self.multiplicative()}
        return {**self.field.constants, **noise}

    @property
    def field(self) -> VectorField:
        """The drift; of a bound field, bound along."""
        inner: Any = getattr(self, "_inner", None)
        field: VectorField = self._modules["field"] if inner is None else inner  # type: ignore[assignment]
        return field

    def _bound_with(self, constants: dict[str, Any], apart: bool) -> Self:
        """The field inside is bound along."""
        bound = super()._bound_with(constants, apart)
        inner = {name: value for name, value in constants.items() if not name.startswith("noise.")}
        object.__setattr__(bound, "_inner", self.field._bound_with(inner, apart=False))
        return bound

    @property
    def operators(self) -> dict[Any, LinearOperator] | None:
        """Those of the field."""
        return self.field.operators

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        where = "" if self.component is None else f", component={self.component}"
        how = ", independent" * self.independent + ", training only" * self.training_only
        return f"multiplies={self.multiplies!r}{where}{how}"


def _root_sum_square(a: float | Tensor, b: Tensor) -> Tensor:
    """sqrt(a^2 + b^2); where a is zero b itself, which has a derivative at zero (the sign of a noise is nothing)."""
    none = torch.as_tensor(a, dtype=b.dtype, device=b.device) == 0
    root = torch.where(none, 1.0, b.square() + a * a).sqrt()
    return torch.where(none, b, root)
