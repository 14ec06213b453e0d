"""How far results are apart, and what this processor can do."""

import torch
from torch import nn


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute error over the largest absolute value."""
    assert found.shape == expected.shape
    scale = expected.detach().abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    return float((found.detach() - expected.detach()).abs().max() / scale)


def assert_agree(found, expected, bound: float) -> None:
    """Two lists of results and gradients; a gradient that is zero may be left out by either."""
    for one, other in zip(found, expected, strict=True):
        if one is None or other is None:
            assert all(g is None or not g.any() for g in (one, other))
        else:
            assert relative_error(one, other) < bound or float((one - other).abs().max()) < 1e-15


def bit_by_bit(rnn, x, spans):
    """A chunk, and then two samples one by one, give the whole; returns its outputs and state, and the stream."""
    expected, end = rnn(x, timespans=spans)
    cut = x.shape[1] - 2
    output, stream = rnn(x[:, :cut], rnn.begin(len(x)), spans[:, :cut])
    outputs = [output]
    for i in (cut, cut + 1):
        output, stream = rnn.step(x[:, i], stream, spans[:, i])
        outputs.append(output.unsqueeze(1))
    torch.testing.assert_close(torch.cat(outputs, 1), expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(stream.state, end, rtol=1e-11, atol=1e-12)
    return expected, end, stream


def has_bfloat16_lstm() -> bool:
    """Whether the processor has torch's LSTM in bfloat16, which oneDNN makes for some alone."""
    try:
        with torch.autocast("cpu", torch.bfloat16):
            nn.LSTM(1, 8)(torch.zeros(1, 2, 1))
    except RuntimeError:
        return False
    return True
