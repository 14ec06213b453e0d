"""Checks of what a recurrent layer is given, each failure one line: what came, what was expected, what to do."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from solvers.base.clock import is_late
from solvers.base.values import concrete, exact, exporting, finite, followed, transformed
from solvers.errors import InputError
from solvers.protocol import Time

Lengths = Tensor | Sequence[int]

#: Values of a sample, of all sequences together, from which going from sample to sample costs less than searching all
#: at once for where each feature was seen last.
CARRIED = 128


def check_sequence(x: Tensor, input_size: int, module: nn.Module, tokens: bool = False) -> None:
    """Refuse inputs of the wrong type, shape, dtype or device; the dtype of `tokens` is not that of the parameters."""
    if not isinstance(x, Tensor):
        raise InputError(f"x is a {type(x).__name__}, expected a tensor (batch, time, input): use torch.as_tensor(x)")
    _check_dense(x)
    if x.dim() != 3 or x.shape[-1] != input_size:
        hint = "add a batch axis with x.unsqueeze(0)" if x.dim() == 2 else "batch first, features last"
        raise InputError(f"x has shape {tuple(x.shape)}, expected (batch, time, {input_size}): {hint}")
    if x.shape[1] == 0:
        raise InputError(f"x has shape {tuple(x.shape)}, expected at least one sample in time")
    parameter = next(module.parameters(), None)
    if x.is_meta:
        there = "" if parameter is None else f", the parameters are on {parameter.device}"
        raise InputError(f"x is on meta, where tensors have no values{there}: make it there, .to(device) cannot")
    if parameter is None:
        return
    if x.device != parameter.device:
        raise InputError(f"x is on {x.device}, the parameters are on {parameter.device}: move one with .to(device)")
    if not tokens and x.dtype != parameter.dtype and not torch.is_autocast_enabled(x.device.type):
        other = f" or rnn.to({x.dtype})" if x.is_floating_point() else ""
        raise InputError(
            f"x has dtype {x.dtype}, the parameters have {parameter.dtype}: use x.to({parameter.dtype}){other}"
        )


def _check_dense(x: Tensor) -> None:
    """Refuse tensors that do not hold a value for each entry."""
    if x.is_nested:
        raise InputError(
            "x is a nested tensor, expected (batch, time, input): use torch.nested.to_padded_tensor(x, 0.0) and lengths"
        )
    if x.layout is not torch.strided:
        raise InputError(f"x has layout {x.layout}, expected a dense tensor: use x.to_dense()")


def filled(x: Tensor, missing: str, valid: Tensor | None = None) -> Tensor:
    """x `(batch, time, input)` with finite values only: NaN replaced by what was last seen under missing = "hold".

    Where not `valid`, `(batch, time)`, nothing is seen, whatever stands there.

    Raises:
        InputError: infinite values, or NaN under missing = "error".
    """
    if missing == "hold":
        x = _last_seen(x, valid)
    if finite(x):
        return x
    sample, step, feature = (int(i) for i in (~torch.isfinite(x)).nonzero()[0])
    value = float(x.detach()[sample, step, feature])
    advice = "clean or fill the data"
    if value != value:
        advice += ', or use missing="hold"'
    raise InputError(
        f"x is {value} at sample {sample}, step {step}, feature {feature}, expected finite values: {advice}"
    )


def _last_seen(x: Tensor, valid: Tensor | None) -> Tensor:
    """The last valid value of each feature that is not NaN, zero before there is one."""
    # NaN alone is not equal to itself: that is half the work of asking for it and turning the answer round.
    seen = x == x
    if _carried(x, 0.0):
        if valid is not None:
            # Row by row of the padding: a mask that is the same for all features would cost as much as all else.
            seen.flatten(0, 1).index_fill_(0, (~valid).flatten().nonzero()[:, 0], False)
        return _carry(x, seen, 0.0)
    if valid is not None:
        seen = seen & valid.unsqueeze(-1)
    # A derivative would look at what is not seen.
    return at_last_seen(x.nan_to_num(0.0, math.inf, -math.inf), seen, 0.0)


def at_last_seen(values: Tensor, seen: Tensor, before: Tensor | float) -> Tensor:
    """Values `(batch, time, features)` where each feature was seen last; `before`, which broadcasts, until it was."""
    if _carried(values, before):
        return _carry(values, seen, before)
    steps = torch.arange(1, seen.shape[1] + 1, device=seen.device).view(-1, 1)
    last = torch.where(seen, steps, 0)
    if exporting() and isinstance(seen.shape[1], int):
        # ONNX has no running maximum.
        last = torch.stack(list(itertools.accumulate(last.unbind(1), torch.maximum)), 1)
    else:
        last = last.cummax(1).values
    return torch.where(last > 0, values.gather(1, (last - 1).clamp_min(0)), before)


def _carried(values: Tensor, before: Tensor | float) -> bool:
    """Whether to go from sample to sample: of plain data on a processor, and enough of them in a sample to pay."""
    parts = (values, before) if isinstance(before, Tensor) else (values,)
    plain = all(part.is_floating_point() and part.device.type == "cpu" and not followed(part) for part in parts)
    return plain and not transformed() and values[:, 0].numel() >= CARRIED


def _carry(values: Tensor, seen: Tensor, before: Tensor | float) -> Tensor:
    """`at_last_seen`, one sample after the other."""
    held = torch.empty_like(values)
    last = torch.as_tensor(before, dtype=values.dtype).expand_as(values[:, :1])[:, 0]
    for sample, known, place in zip(values.unbind(1), seen.unbind(1), held.unbind(1), strict=True):
        last = torch.where(known, sample, last, out=place)
    return held


def without_padding(x: Tensor, valid: Tensor, empty: Tensor | float = 0.0) -> Tensor:
    """x with the last valid sample repeated in the padding; where there is none, `empty`, which broadcasts to x."""
    return torch.where(valid.unsqueeze(-1), x, last_valid(x, valid, empty))


def last_valid(x: Tensor, valid: Tensor, empty: Tensor | float = 0.0) -> Tensor:
    """The last valid sample `(batch, 1, features)`; where there is none, `empty`, which broadcasts to it."""
    count = valid.sum(1).view(-1, 1, 1)
    return torch.where(count > 0, x.gather(1, (count - 1).clamp_min(0).expand(-1, 1, x.shape[2])), empty)


def pack_like(output: Tensor, lengths: Tensor, like: PackedSequence) -> PackedSequence:
    """Pack a padded batch in exactly the order of another PackedSequence, ties included."""
    if like.sorted_indices is not None:
        output = output.index_select(0, like.sorted_indices)
        lengths = lengths.index_select(0, like.sorted_indices.cpu())
    packed = pack_padded_sequence(output, lengths, batch_first=True)
    return PackedSequence(packed.data, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


def _as_tensor(name: str, value: Any, expected: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {reprlib.repr(value)}, expected {expected}") from None


def valid_steps(lengths: Lengths, x: Tensor) -> Tensor:
    """True for samples within `lengths`, `(batch, time)`.

    Raises:
        InputError: a wrong number of lengths, or one outside 0 .. time.
    """
    batch, time = x.shape[:2]
    lengths = _as_tensor("lengths", lengths, f"{batch} integers, one per sample").to(x.device)
    if lengths.numel() == 0:
        lengths = lengths.long()
    if lengths.shape != (batch,) or lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise InputError(
            f"lengths has shape {tuple(lengths.shape)} and dtype {lengths.dtype}, "
            f"expected {batch} integers, one per sample"
        )
    wrong = (lengths < 0) | (lengths > time)
    if concrete(lengths) and bool(wrong.any()):
        sample = int(wrong.nonzero()[0])
        raise InputError(
            f"lengths[{sample}] is {int(lengths[sample])}, expected between 0 and {time}, the padded length"
        )
    return torch.arange(time, device=x.device) < lengths.unsqueeze(-1)


def check_timespans(timespans: Tensor, x: Tensor, valid: Tensor | None = None) -> Tensor:
    """The timespans as a tensor like x, `(time,)` or `(batch, time)`; zero where not `valid`.

    Raises:
        InputError: wrong shape, negative or non-finite.
    """
    batch, time = x.shape[:2]
    spans = _as_tensor("timespans", timespans, f"a tensor ({time},) or ({batch}, {time})")
    if spans.is_complex():
        raise InputError(f"timespans has dtype {spans.dtype}, expected real numbers")
    if spans.device != x.device:
        raise InputError(f"timespans is on {spans.device}, x is on {x.device}: use timespans.to(x)")
    # One comparison alone: a second one of the batch with the time would be a condition of an exported program.
    if spans.shape != ((time,) if spans.dim() == 1 else (batch, time)):
        raise InputError(
            f"timespans has shape {tuple(spans.shape)}, expected ({time},) or ({batch}, {time}): the time elapsed "
            "since the previous sample, in units of dt"
        )
    if valid is not None:
        # Padding may hold anything; no time passes there.
        spans = torch.where(valid, spans, 0)
    wrong = ~torch.isfinite(spans) | (spans < 0)
    if concrete(spans) and bool(wrong.any()):
        place = tuple(int(i) for i in wrong.nonzero()[0])
        raise InputError(
            f"timespans{list(place)} is {float(spans.detach()[place]):g}, expected finite and at least 0: "
            "time must not run backwards"
        )
    return spans.to(x.dtype)


def without_effect(spans: Tensor, valid: Tensor | None) -> int:
    """How many samples take the place of another in no time at all; 0 where no value is known."""
    still = spans.detach() == 0
    if valid is not None:
        still = still & valid
    return int(still.sum()) if concrete(still) else 0


def instant(spans: Tensor, valid: Tensor | None) -> Tensor:
    """The spans, where they are 0 at a valid sample so short that a state does not move, and yet no padding."""
    tiny = 2.0**-14 if spans.dtype == torch.float16 else 2.0**-100
    still = spans == 0 if valid is None else (spans == 0) & valid
    return torch.where(still, spans + tiny, spans)


def check_per_sample(name: str, value: Tensor | float, x: Tensor) -> Time:
    """A number, or one value per sample `(batch, 1)`, finite and at least 0."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < math.inf:
            raise InputError(f"{name} is {value:g}, expected finite and at least 0")
        return float(value)
    batch = x.shape[0]
    value = _as_tensor(name, value, f"a number or a tensor ({batch},)")
    if value.shape not in ((), (batch,)) or value.is_complex():
        raise InputError(f"{name} has shape {tuple(value.shape)}, expected a number or a tensor ({batch},)")
    wrong = ~torch.isfinite(value) | (value < 0)
    if concrete(value) and bool(wrong.any()):
        raise InputError(f"{name} is {float(value[wrong][0]):g}, expected finite and at least 0")
    # A time keeps the digits that x has not where neighbours would be one number without them.
    late = name == "time" and concrete(value) and is_late(value, 1.0, x.dtype)
    value = value.to(x.device, exact(x.device, value.dtype) if late else x.dtype)
    return (value if value.dim() else value.expand(batch)).unsqueeze(-1)


def check_times(at: Any, x: Tensor) -> Tensor:
    """Times since the start, `(times,)` or `(batch, times)`, as `(batch, times)` in the precision of clocks."""
    batch = x.shape[0]
    times = _as_tensor("at", at, f"times (times,) or ({batch}, times)")
    if times.dim() not in (1, 2) or (times.dim() == 2 and len(times) != batch) or times.is_complex():
        raise InputError(
            f"at has shape {tuple(times.shape)}, expected (times,) or ({batch}, times): times since the start, "
            "in units of dt"
        )
    wrong = ~torch.isfinite(times) | (times < 0)
    if bool(wrong.any()):
        raise InputError(f"at holds {float(times[wrong][0]):g}, expected finite times of at least 0")
    return times.to(x.device, x.dtype if x.device.type == "mps" else torch.float64).expand(batch, -1)


def state_dtype(x: Tensor, module: nn.Module) -> torch.dtype:
    """The type of a state: that of x, and under autocast, whose products x may be, at least that of the parameters."""
    parameter = next(module.parameters(), None)
    if parameter is None or not torch.is_autocast_enabled(x.device.type):
        return x.dtype
    return torch.promote_types(x.dtype, parameter.dtype)


def check_state(state: Tensor, shape: tuple[int, ...], x: Tensor, dtype: torch.dtype) -> Tensor:
    """The given initial state in this type, refused if it does not fit."""
    if not isinstance(state, Tensor) or tuple(state.shape) != shape:
        actual = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
        raise InputError(
            f"state has shape {actual}, expected {shape}: ([layers * directions,] batch, components, hidden)"
        )
    if state.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        state = state.to(dtype)
    if state.dtype != dtype or state.device != x.device:
        raise InputError(f"state is {state.dtype} on {state.device}, x is {x.dtype} on {x.device}: use state.to(x)")
    if not finite(state):
        raise InputError("state has NaN or infinite entries, expected finite values: start from zeros or a valid state")
    return state
