"""The recurrent layer: fields, a solver and a gradient, used like `torch.nn.RNN`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

import solvers
from neuralosc.layers import explain, queries, realizations
from neuralosc.layers import solution as passes
from neuralosc.layers import stream as streams
from neuralosc.layers.explain import Explanation
from neuralosc.layers.inputs import Lengths
from neuralosc.layers.solution import Solution
from neuralosc.layers.stack import Stack
from neuralosc.layers.stream import Stream
from solvers.base.sharing import twin


class ContinuousRNN(Stack):
    """A recurrent layer: a vector field stepped by a solver from sample to sample.

    Between sample i-1 and sample i the state follows d state/dt = f(t, state, u(t)) for timespans_i * dt, driven by
    the input current u; the output is the position component after every sample.

    Args:
        field: the vector field, or a sequence of them for a stack of layers; each layer is driven by the output of
            the one before. A bidirectional layer has two, in the order of torch: layer 0, layer 0 reversed, layer 1,
            layer 1 reversed, ...
        solver: a name of `solvers.available()` or a Solver value.
        dt: time between two samples whose timespan is 1; one number, or one per layer.
        substeps: equal steps per interval.
        gradient: a name of `solvers.GRADIENTS` or a value.
        control: u between the samples, a name of `solvers.CONTROLS` or a value. Left out it is "hold", and "cubic"
            where a field is driven by the derivative of its input, which a control that jumps does not have.
        dropout: probability of dropping a channel after each layer, the last included; one mask per sequence, shared
            over time.
        missing: what to do with NaN in x: "error" refuses it, "hold" takes the last value of that feature that was
            seen, and zero before there was one; "mask" adds to that, for each feature, 1 where it was seen now, else 0,
            and the time since it was last seen before this sample, in units of dt; "decay" lets the last value go to
            the mean of the feature at a rate that is learned (`rnn.decay`, see `Decay`), and adds whether it was seen.
            A field is shown 3 times the features under "mask" and twice as many under "decay"; named networks see to
            that.
        max_dt: the longest step, as a timespan: 1 is a step of dt. An interval that is longer for a sample is split
            into equal steps of that sample, whose steps are a list of its own: a batch takes as many as the sample
            with the most, whichever intervals they are in. "auto" is 1, and no bound where a method needs none (it
            chooses its own steps, or is as good over a long gap as over a short one). None is no bound.
        bidirectional: run every layer in both directions and give the next one both outputs beside each other.
        residual: add what goes into a layer to what it gives, through a linear map where the sizes differ.
        options: options of the solver, by name, such as `rtol`; see `solvers.available`.

    The reverse direction sees the valid samples from the last to the first. The time that passes before it sees a
    sample is the time between that sample and the one it saw before; before the last sample, which it sees first, it is
    the timespan of the first. A skip connection goes around each layer and its dropout (He et al., Deep Residual
    Learning, CVPR 2016): the identity where the sizes are equal, else, which can only be at the first layer, `skip`, a
    learned map without bias.

    Raises:
        PairingError: the solver cannot work with the field.
    """

    def extra_repr(self) -> str:
        """What the module shows of itself."""
        return (
            f"solver={self.solver.name!r}, dt={self.dt}, substeps={self.substeps}, gradient={self.gradient.name!r}, "
            f"control={self.control.name!r}, dropout={self.dropout:g}, missing={self.missing!r}, "
            f"max_dt={self.max_dt}, bidirectional={self.bidirectional}, residual={self.residual}"
        )

    def with_solver(
        self,
        solver: str | dict[str, Any] | solvers.Solver,
        *,
        dt: float | Sequence[float] | None = None,
        substeps: int | None = None,
        gradient: str | solvers.Gradient | None = None,
        control: str | solvers.Control | None = None,
        max_dt: float | str | None = None,
        **options: Any,
    ) -> ContinuousRNN:
        """The same weights (shared, not copied) under another solver; what is not given stays (max_dt: inf for none).

        Options of the solver are given by name: `rnn.with_solver("dopri5", rtol=1e-6)`.

        Parameters and buffers are held in common, so that training one network trains the other; its mode (`train`,
        `eval`), hooks and attributes are its own, as they are now.

        Raises:
            PairingError: the solver cannot work with the field.
        """
        swapped = twin(self)
        swapped._choose(
            solver,
            self.dts if dt is None else dt,
            self.substeps if substeps is None else substeps,
            self.gradient if gradient is None else gradient,
            self.control if control is None else control,
            self.max_dt if max_dt is None else max_dt,
            options,
        )
        if self.config is not None:
            swapped.config = {**self.config, **swapped.choices()}
        return swapped

    def _run(self, x: Tensor, state: Any, timespans: Tensor | None, lengths: Lengths | None) -> tuple[Tensor, Any]:
        if isinstance(state, Stream):
            return streams.run_chunk(self, x, state, timespans, lengths)[:2]
        solution = passes.run(self, x, state, timespans, lengths, positions_only=True)
        return solution.output, solution.state

    def solve(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
    ) -> Solution:
        """Like calling the layer, with the states of every layer at every sample and the cost."""
        return passes.run(self, x, state, timespans, lengths, positions_only=False)

    def trajectory(
        self,
        x: Tensor | None = None,
        timespans: Tensor | None = None,
        at: Tensor | Sequence[float] = (),
        state: Tensor | None = None,
        lengths: Lengths | None = None,
        causal: bool = False,
        future: str = "zero",
    ) -> Tensor:
        """States of the last layer at any times: between the samples, and after the last one, where there is no input.

        The run from sample to sample is the one of `forward`, whatever times are asked for; a time between two samples
        is reached by a step (or `substeps`, or as many as `max_dt` asks for) from the sample before it.

        **Between two samples the input is what the control makes of it, and so knows the next sample**: "hold" is that
        sample, "linear" and "cubic" go towards it, "linear_noncausal" knows the one after, too, and "natural" all;
        "rectilinear" alone is the sample before (and, before the first one, that). For what could be said at the time,
        as a forecast has to, ask with `causal=True`, under a causal control.

        Args:
            x, timespans, state, lengths: see `forward`. Without x it goes on from the state alone: there is no sample
                and no input.
            at: times since the start, in units of dt, `(times,)` or one row per sample `(batch, times)`, in any order.
                Sample i was taken at the sum of the timespans up to its own.
            causal: use no sample after the time that is asked for: from the last sample before it on, the input is that
                of the `future`. What the control has looked ahead up to that sample is not taken back.
            future: the input after the last sample: "zero", or "hold" for that sample's; before the first one zero. In
                a stack it is what goes into the last layer.

        Returns:
            `(batch, times, components, hidden)`, differentiable also in `at`. In a bidirectional network the channels
            of the reverse direction follow: its run goes from the last sample, before which it rests for the timespan
            of the first, to the first, before which there is no input.
        """
        if x is None:
            given = {"timespans": timespans, "lengths": lengths, "future": None if future == "zero" else future}
            return queries.states_after(self, state, at, given)
        return queries.states_at(self, self.solve(x, state, timespans, lengths), at, causal, future)

    def sample_paths(
        self,
        x: Tensor,
        timespans: Tensor | None = None,
        at: Tensor | Sequence[float] = (),
        state: Tensor | None = None,
        lengths: Lengths | None = None,
        count: int = 100,
        future: str = "zero",
    ) -> Tensor:
        """What may happen under noise: states of the last layer at any times, on paths of which each has its own noise.

        A path goes through the samples and the asked times, at each of which a step ends, so that what it is at
        several times belongs together: `paths.quantile(q, 0)` is a band, and a mean over what a path does (the time
        above a threshold, say) is an expectation. The input is that of `trajectory`.

        Args:
            x, timespans, state, lengths, at, future: see `trajectory`.
            count: paths of each sample of the batch.

        Returns:
            `(count, batch, times, components, hidden)`, differentiable like a call.

        Raises:
            InputError: a method without noise, a bidirectional network, or a field that jumps at samples.
        """
        return realizations.sample_paths(self, x, timespans, at, state, lengths, count, future)

    def advance(
        self,
        state: Tensor,
        timespan: Tensor | float,
        x: Tensor | None = None,
        time: Tensor | float | None = None,
    ) -> Tensor:
        """The state after some time in which no sample is taken: what is believed meanwhile.

        Args:
            state: as a call returns it.
            timespan: how long, in units of dt, a number or `(batch,)`.
            x: an input `(batch, input)` that is held meanwhile; zero when left out. The layers after the first have
                none.
            time: time of the state, in units of dt; only a field that depends on time sees it.

        Returns:
            the state, of the same shape. A field that jumps at samples does not.
        """
        return queries.advance(self, state, timespan, x, time)

    def transition(
        self,
        state: Tensor,
        x: Tensor,
        timespan: Tensor | float | None = None,
        layer: int | None = None,
        time: Tensor | float | None = None,
    ) -> Tensor:
        """The state after a sample, as a map of the state before: what a step of the network is to its derivatives.

            step = solvers.Transition(lambda state: rnn.transition(state, x))
            step.jacobian(state), step.jvp(state, v), step.vjp(state, w)

        It is the step of the network's solver with all its substeps, by the plain path, and can be differentiated
        under any of its gradients.

        Args:
            state: of one layer, `(batch, components, hidden)`.
            x: what goes into the layer, `(batch, features)`: the sample, or the output of the layer before.
            timespan: since the sample before, in units of dt, a number or `(batch,)`; 1 when left out.
            layer: which one, of a network of several.
            time: of the sample before, in units of dt; only a field that depends on time sees it. 0 when left out.

        Raises:
            InputError: a bidirectional network; one of several layers without `layer`; a control that looks at other
                samples too.
        """
        return queries.transition(self, state, x, timespan, layer, time)

    def begin(self, batch: int, state: Tensor | None = None, time: Tensor | float = 0.0) -> Stream:
        """The beginning of a stream, whose chunks together are the whole sequence:

            stream = rnn.begin(len(x))
            for chunk in x.split(100, dim=1):
                output, stream = rnn(chunk, stream)
                stream = stream.detach()

        A state alone is not enough where a control looks back on earlier samples, where missing values are held, or
        where a field depends on time. A stream goes into `step`, too.

        Args:
            batch: samples in the batch.
            state: initial state; left out, zeros, or what a field makes of its first sample
                (`VectorField.initial_state`).
            time: time of the sample before the first, in units of dt, a number or `(batch,)`.
        """
        return streams.begin(self, batch, state, time)

    def step(
        self,
        x: Tensor,
        state: Tensor | Stream | None = None,
        timespan: Tensor | float | None = None,
        time: Tensor | float | None = None,
    ) -> tuple[Tensor, Tensor | Stream]:
        """One sample at a time: fed back its own state, it equals the call on the whole sequence.

        Args:
            x: the sample, `(batch, input)`.
            state: what the step before returned; None, or a state, at the beginning.
            timespan: time elapsed since the sample before, in units of dt: a number or `(batch,)`; 1 when left out.
            time: time of the sample before, in units of dt; only a field that depends on time sees it. Left out, it is
                that of the stream, and 0 at the beginning.

        Returns:
            output `(batch, hidden)`, and what the next step needs: the state, `([layers,] batch, components, hidden)`;
            a `Stream`, which holds it, where one was given, or where earlier samples matter too (a control other than
            "hold", or `missing="hold"`), or the time does that was not given (a field that is `timed`).
        """
        return streams.step(self, x, state, timespan, time)

    def explain(
        self,
        x: Tensor,
        state: Tensor | None = None,
        timespans: Tensor | None = None,
        lengths: Lengths | None = None,
        source: bool = False,
        show: bool = True,
    ) -> Explanation:
        """Say which path each layer takes and why, what it keeps for the backward pass, and how fast it is.

        Runs some training steps: forward and backward of the mean square of a layer's last output, parameters only;
        no gradient is left behind. The products are those of the compiled step, forward, backward and for the
        gradients of its matrices, timed alone; a layer without any has no floor.

        Args:
            x, state, timespans, lengths: see `forward`.
            source: show the generated code too.
            show: print it.
        """
        return explain.explain(self, x, state, timespans, lengths, source, show)
