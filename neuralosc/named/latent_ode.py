"""Latent ODE: a series as one draw of an initial state, from which a differential equation tells all times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import solvers
from neuralosc import arguments
from neuralosc.fields.jump_gru import JumpGRU, draw_, tanh_network
from neuralosc.fields.parameters import number
from neuralosc.layers import inputs
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.rnn import ContinuousRNN
from neuralosc.layers.solution import directions
from neuralosc.named.published import Keys, fill, published
from neuralosc.named.published_ode import published_classifier, published_field
from solvers.base.values import exact, finite
from solvers.errors import InputError
from solvers.protocol import Time

#: What `LatentODE.elbo` makes of several draws.
OBJECTIVES = {
    "published": "log-mean-exp over the draws, less the divergence",
    "elbo": "their mean, less the divergence",
    "importance": "log-mean-exp of their importance weights",
}

#: Standard deviations of z0 from which on they are taken as they are: log 0 is no number.
LEAST = 1e-6


class Flow(nn.Module):
    """dz = net(z): a right-hand side without time and input."""

    def __init__(self, size: int, units: int, layers: int) -> None:
        super().__init__()
        self.net = tanh_network(size, units, layers)

    def forward(self, t: Time, state: Tensor, u: Any) -> Tensor:
        """net(z)."""
        slope: Tensor = self.net(state)
        return slope


class LatentODE(nn.Module):
    """A variational autoencoder of irregularly sampled series: an ODE-RNN reads one, an ODE tells it again.

        (m, s) = transform(ODE-RNN of the samples, from the last to the first)
        z0 ~ N(m, s^2),    dz = net(z),    z(0) = z0,    y(t) = readout(z(t)) at any t
        prior z0 ~ N(0, 1)

    Each sample of a batch has a clock of its own: its sample i was taken at the sum of its timespans up to its own, in
    units of dt, and z0 is the state at time 0. The encoder goes from the last sample back to time 0, and its clock
    runs along with it: where the published code integrates its field backwards, this one has the negative field.
    NaN in x is a value that was not observed; at samples of which nothing was, the encoder makes no jump.

    With the published code it has the encoder, the maps and the decoder in common. There samples share their clock,
    z0 belongs to the first of the times asked for, whichever time that is, the encoder starts with a step over 0.01 of
    time, and takes as many Euler steps in an interval as fiftieths of the whole range are in it (a sample of NaN alone
    is a place where a step ends).

    Args:
        input_size: features of a sample.
        latent_size: values of z.
        encoder_size, update, encoder_layers, gate_units: hidden_size, update, field_layers and gate_units of the
            encoder; see `JumpGRU`.
        units: of each layer of both nets.
        field_layers: maps of the decoder's net between its first and its last.
        dt: time between two samples whose timespan is 1.
        solver: of the decoder. One of fixed steps steps from each time that is asked for to the next.
        max_dt: the longest step of the decoder, as a timespan; None for no bound.
        gradient: how the decoder is differentiated.
        encoder_solver, encoder_substeps: of the encoder, and its equal steps in an interval, of which there are more
            where one would be longer than a timespan of 1.

    The maps start with weights from N(0, 0.01) and zero biases.

    Source: Rubanova, Chen, Duvenaud, Latent ODEs for Irregularly-Sampled Time Series, NeurIPS 2019, section 3.3.

    Raises:
        PairingError: the solver needs a structure that the decoder's field, a bare function, has not.
    """

    def __init__(
        self,
        input_size: int,
        latent_size: int,
        *,
        encoder_size: int = 20,
        update: str = "gru_unit",
        encoder_layers: int = 1,
        gate_units: int = 100,
        units: int = 100,
        field_layers: int = 1,
        dt: float = 1.0,
        solver: str | dict[str, Any] | solvers.Solver | None = None,
        max_dt: float | None = None,
        gradient: str | solvers.Gradient = "backprop",
        encoder_solver: str | dict[str, Any] | solvers.Solver = "euler",
        encoder_substeps: int = 1,
    ) -> None:
        super().__init__()
        self.input_size = arguments.count("input_size", input_size)
        self.latent_size = arguments.count("latent_size", latent_size)
        self.dt = arguments.positive("dt", dt)
        self.max_dt = None if max_dt is None else arguments.positive("max_dt", max_dt)
        self.sizes = {
            "encoder_size": arguments.count("encoder_size", encoder_size), "update": update,
            "encoder_layers": encoder_layers, "gate_units": gate_units, "units": units, "field_layers": field_layers,
        }  # fmt: skip
        shown_size = arguments.shown("mask", input_size)
        field = JumpGRU(shown_size, encoder_size, update, encoder_layers, units, gate_units, masked=True)
        self.encoder = ContinuousRNN(field, encoder_solver, dt, encoder_substeps, missing="mask")
        read = self.encoder.components * encoder_size
        self.transform = nn.Sequential(nn.Linear(read, 100), nn.Tanh(), nn.Linear(100, 2 * latent_size))
        self.flow = Flow(latent_size, units, field_layers)
        self.readout = nn.Linear(latent_size, input_size)
        draw_(self.transform)
        draw_(self.readout)
        # The published tolerances.
        self.solver = solvers.get({"name": "native_dopri5", "rtol": 1e-3, "atol": 1e-4} if solver is None else solver)
        self.gradient = solvers.get_gradient(gradient)
        solvers.check(self.flow, self.solver, self.gradient)

    @property
    def config(self) -> dict[str, Any]:
        """All of it but its weights: its arguments, and behind "encoder_" the choices of the encoder."""
        return {
            "input_size": self.input_size,
            "latent_size": self.latent_size,
            **self.sizes,
            "dt": self.dt,
            "solver": solvers.spec(self.solver),
            "max_dt": self.max_dt,
            "gradient": solvers.gradient_spec(self.gradient),
            **{f"encoder_{name}": value for name, value in self.encoder.choices().items()},
        }

    def encode(
        self, x: Tensor, timespans: Tensor | None = None, lengths: Lengths | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of z0, `(batch, latent)` each.

        Args:
            x: `(batch, time, input)`, NaN where nothing was observed.
            timespans: time elapsed since the sample before, the first one's since time 0, in units of dt, `(time,)` or
                `(batch, time)`; ones when left out.
            lengths: number of valid samples of each sequence, `(batch,)`.

        Raises:
            InputError: shapes, dtypes, devices or values that do not fit.
            NumericalError: the state became non-finite.
        """
        spans, valid = self._clocks(x, timespans, lengths)
        # No time passes before the last sample, which the encoder sees first; and what is before the first, afterwards.
        between = torch.cat((torch.zeros_like(spans[:, :1]), spans[:, 1:]), 1)
        back = directions(between, valid, 2)[1]
        _, state = self.encoder(back.turned(x), timespans=back.spans, lengths=lengths)
        state = self.encoder.advance(state, spans[:, 0])
        mean, raw = self.transform(state.flatten(1)).chunk(2, -1)
        return mean, raw.abs().clamp_min(LEAST)

    def latents(self, z0: Tensor, at: Tensor | Sequence[float]) -> Tensor:
        """z at any times, `(.., batch, times, latent)`.

        Args:
            z0: z at time 0, `(batch, latent)` or `(draws, batch, latent)`.
            at: times since the start, in units of dt, `(times,)` or one row per sample `(batch, times)`, in any order.
        """
        if not isinstance(z0, Tensor) or z0.dim() not in (2, 3) or z0.shape[-1] != self.latent_size:
            got = tuple(z0.shape) if isinstance(z0, Tensor) else type(z0).__name__
            raise InputError(f"z0 is {got}, expected ([draws,] batch, {self.latent_size})")
        times, order = inputs.check_times(at, z0 if z0.dim() == 2 else z0[0]).sort(-1)
        clock, rows = functional.pad(times, (1, 0)) * self.dt, z0.reshape(-1, 1, self.latent_size)
        # Samples that share their times take their steps together where a solver can.
        shared = torch.as_tensor(at).dim() == 1 and len(clock) > 0
        clock = clock[0] if shared else clock.repeat(1 if z0.dim() == 2 else len(z0), 1)
        longest = None if self.max_dt is None else self.max_dt * self.dt
        run = solvers.integrate(self.flow, rows, clock, None, self.solver, self.gradient, max_dt=longest)
        z = run.states[:, 1:, 0].reshape(*z0.shape[:-1], times.shape[-1], self.latent_size)
        back = order.argsort(-1).unsqueeze(-1).expand(*z0.shape[:-1], -1, 1)
        return torch.take_along_dim(z, back, -2)

    def forward(
        self,
        x: Tensor,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
        at: Tensor | Sequence[float] | None = None,
        draws: int = 1,
        noise: Tensor | None = None,
    ) -> Tensor:
        """What the series was, is or will be at some times, once for each draw of z0.

        Args:
            x, timespans, lengths: see `encode`.
            at: times, see `latents`; those of the samples when left out, in the padding that of the last one.
            draws: how many.
            noise: standard normal values to make the draws of, `(draws, batch, latent)`; drawn when left out,
                and as many as it has when given.

        Returns:
            `(draws, batch, times, input)`.
        """
        mean, std = self.encode(x, timespans, lengths)
        y: Tensor = self.readout(
            self.latents(self._drawn(mean, std, draws, noise), self._at(x, timespans, lengths, at))
        )
        return y

    def elbo(
        self,
        x: Tensor,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
        targets: Tensor | None = None,
        at: Tensor | Sequence[float] | None = None,
        *,
        noise_std: float = 0.01,
        draws: int = 1,
        kl_weight: float = 1.0,
        objective: str = "published",
        noise: Tensor | None = None,
    ) -> Tensor:
        """The objective to maximize, one number for each sequence, `(batch,)`.

            l_k = sum over observed entries of log N(target | y_k, noise_std^2),    D = KL(N(m, s^2) | N(0, 1))

            "published"     log mean_k exp(l_k - kl_weight D)
            "elbo"          mean_k l_k - kl_weight D
            "importance"    log mean_k exp(l_k + kl_weight (log N(z0_k | 0, 1) - log N(z0_k | m, s^2)))

        With one draw the first two are the same. With kl_weight 1 the evidence lower bound is "elbo", and "importance"
        the closer one of Burda, Grosse, Salakhutdinov, Importance Weighted Autoencoders, ICLR 2016; **"published" with
        more draws than one is no bound of the likelihood, which it can exceed.** The published code has means in the
        place of all sums (over the entries of a feature, features, channels of z0, and the batch before the
        exponential) and leaves out the log of the number of draws.

        Args:
            x, timespans, lengths, draws, noise: see `forward`.
            targets: what was observed at the times `at`, `(batch, times, input)`, NaN where nothing was; x, at the
                times of the samples, when left out.
            at: times of the targets, see `latents`.
            noise_std: standard deviation of an observation.
            kl_weight: weight of the divergence from the prior, which training may raise from 0 to 1.
            objective: one of these.
        """
        arguments.choice("objective", objective, OBJECTIVES)
        std_of_data, weight = arguments.positive("noise_std", noise_std), number("kl_weight", kl_weight, least=0)
        if (targets is None) != (at is None):
            given, lacks = ("at", "targets") if targets is None else ("targets", "at")
            raise InputError(f"{given} was given without {lacks}: give what was observed and when, or neither")
        mean, std = self.encode(x, timespans, lengths)
        times = self._at(x, timespans, lengths, at)
        observed = self._observed(x, lengths) if targets is None else self._targets(targets, times, x)
        z0 = self._drawn(mean, std, draws, noise)
        y = self.readout(self.latents(z0, times))
        seen = ~observed.isnan()
        error = torch.where(seen, observed.nan_to_num() - y, 0.0) / std_of_data
        constant = math.log(std_of_data) + math.log(2 * math.pi) / 2
        likelihood = -(error.square() / 2).sum((-2, -1)) - constant * seen.sum((-2, -1), dtype=y.dtype)
        count = math.log(len(z0))
        if objective == "importance":
            prior = (torch.log(std) + ((z0 - mean) / std).square() / 2 - z0.square() / 2).sum(-1)
            return torch.logsumexp(likelihood + weight * prior, 0) - count
        divergence = weight * ((mean.square() + std.square() - 1) / 2 - torch.log(std)).sum(-1)
        if objective == "elbo":
            return likelihood.mean(0) - divergence
        return torch.logsumexp(likelihood - divergence, 0) - count

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return f"dt={self.dt}, solver={self.solver.name!r}, gradient={self.gradient.name!r}, max_dt={self.max_dt}"

    def _clocks(self, x: Tensor, timespans: Tensor | None, lengths: Lengths | None) -> tuple[Tensor, Tensor | None]:
        """The timespans `(batch, time)`, 0 in the padding, and which samples are valid if lengths are given."""
        inputs.check_sequence(x, self.input_size, self)
        valid = None if lengths is None else inputs.valid_steps(lengths, x)
        given = x.new_ones(x.shape[1]) if timespans is None else timespans
        return inputs.check_timespans(given, x, valid).expand(x.shape[:2]), valid

    def _at(
        self, x: Tensor, timespans: Tensor | None, lengths: Lengths | None, at: Tensor | Sequence[float] | None
    ) -> Tensor | Sequence[float]:
        """The times asked for, or those of the samples."""
        if at is not None:
            return at
        spans, _ = self._clocks(x, timespans, lengths)
        return spans.to(exact(x.device, x.dtype)).cumsum(-1)

    def _observed(self, x: Tensor, lengths: Lengths | None) -> Tensor:
        """The samples, NaN in the padding."""
        if lengths is None:
            return x
        return torch.where(inputs.valid_steps(lengths, x).unsqueeze(-1), x, math.nan)

    def _targets(self, targets: Tensor, at: Tensor | Sequence[float], x: Tensor) -> Tensor:
        """The targets, refused if they do not fit the times or are infinite."""
        shape = (x.shape[0], torch.as_tensor(at).shape[-1], self.input_size)
        if not isinstance(targets, Tensor) or targets.shape != shape or targets.dtype != x.dtype:
            got = f"{targets.dtype} {tuple(targets.shape)}" if isinstance(targets, Tensor) else type(targets).__name__
            raise InputError(f"targets are {got}, expected {x.dtype} {shape}: one value per time and feature")
        if not finite(targets.nan_to_num(0.0, math.inf, -math.inf)):
            raise InputError("targets have infinite entries, expected finite ones, and NaN where nothing was observed")
        return targets

    def _drawn(self, mean: Tensor, std: Tensor, draws: int, noise: Tensor | None) -> Tensor:
        """Draws of z0, `(draws, batch, latent)`."""
        shape = (arguments.count("draws", draws), *mean.shape)
        if noise is None:
            noise = torch.randn(shape, dtype=mean.dtype, device=mean.device)
        elif not isinstance(noise, Tensor) or noise.shape[1:] != mean.shape or noise.dim() != 3 or not len(noise):
            got = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise InputError(f"noise is {got}, expected (draws, {mean.shape[0]}, {mean.shape[1]})")
        return mean + std * noise.to(mean)


@published("latent_ode")
def _published(keys: Keys, **settings: Any) -> tuple[LatentODE, nn.ModuleDict | None]:
    sizes, values = published_field(keys, "encoder_z0.GRU_update", "encoder_z0.z0_diffeq_solver.ode_func.gradient_net")
    last = f"net.{2 * sizes['field_layers'] + 2}"
    for part in ("weight", "bias"):
        # The clock of the encoder runs against theirs.
        values[f"{last}.{part}"] = -values[f"{last}.{part}"]
    values = {f"encoder.fields.0.{name}": value for name, value in values.items()}
    flow = keys.maps("diffeq_solver.ode_func.gradient_net") or keys.maps("diffeq_solver.ode_func.gradient_net", (0,))
    parts = {"transform": keys.maps("encoder_z0.transform_z0", (0, 2)), "flow.net": flow}
    parts["readout"] = keys.maps("decoder.decoder", (0,))
    for name, maps in parts.items():
        for i, pair in enumerate(maps):
            place = name if name == "readout" else f"{name}.{2 * i}"
            values |= {f"{place}.{part}": value for part, value in zip(("weight", "bias"), pair, strict=True)}
    latent = len(flow[-1][1])
    if len(flow[0][1]) != sizes["units"]:
        raise keys.wrong(f"has {len(flow[0][1])} units in the decoder's net and {sizes['units']} in the encoder's")
    model = LatentODE(
        sizes["features"], latent, encoder_size=sizes["hidden"], encoder_layers=sizes["field_layers"],
        gate_units=sizes["gate_units"], units=sizes["units"], field_layers=len(flow) - 2, **settings,
    ).to(flow[0][0].dtype)  # fmt: skip
    fill(model, values, "latent_ode")
    heads = published_classifier(keys, latent)
    keys.finish()
    return model, nn.ModuleDict(heads) if heads else None
