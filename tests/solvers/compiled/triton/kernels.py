"""GPU kernels against the plain path, and what the compiler makes of them.

On a machine with a GPU they run there. Elsewhere Triton's interpreter runs them, in main memory, and the compiler makes
them for a GPU that is not there, which shows the registers and the shared memory they take.
"""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import neuralosc
import solvers
from tests.measures import assert_agree

ROOT = Path(__file__).parents[4]
if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def solved(rnn, backend, x, state, spans, weights):
    """Output, last state and all gradients of one backend."""
    leaves = [t for t in (x, state, spans) if t is not None and t.requires_grad] + list(rnn.parameters())
    with solvers.backend(backend):
        solution = rnn.solve(x, state, timespans=spans)
    record = solution.trajectories[0].record
    assert record.path == backend
    assert ("@triton.jit" in record.source) == (backend == "triton")
    loss = sum((w * t).sum() for w, t in zip(weights, (solution.states, solution.output, solution.state), strict=True))
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [solution.output, solution.state, *grads], solution.evaluations


def agree(rnn, batch=3, time=4, spans=None, dtype=torch.float64, bound=1e-12):
    rnn = rnn.to(DEVICE, dtype)
    shape = (batch, time, rnn.components, rnn.hidden_size)
    x = torch.randn(batch, time, rnn.input_size, dtype=dtype).to(DEVICE).requires_grad_()
    state = torch.randn(batch, *shape[2:], dtype=dtype).to(DEVICE).requires_grad_()
    if spans == "sample":
        spans = torch.rand(batch, time, dtype=dtype).add(0.05).to(DEVICE).requires_grad_()
    weights = [torch.randn(s, dtype=dtype).to(DEVICE) for s in (shape, (*shape[:2], shape[3]), (batch, *shape[2:]))]
    plain, calls = solved(rnn, "plain", x, state, spans, weights)
    fast, same = solved(rnn, "triton", x, state, spans, weights)
    assert calls == same
    assert_agree(fast, plain, bound)


class Functions(neuralosc.VectorField):
    """A user's own field with every function that kernels know."""

    def __init__(self, input_size, hidden_size):
        super().__init__(input_size, hidden_size)
        self.V = nn.Linear(input_size, hidden_size)
        self.a, self.c = nn.Parameter(torch.randn(hidden_size)), nn.Parameter(torch.tensor(0.3))
        self.W = nn.Parameter(torch.randn(2 * hidden_size, hidden_size) / hidden_size)

    def drive(self, x):
        return self.V(x)

    def forward(self, t, state, u):
        (h,) = state.unbind(-2)
        both = torch.cat([h.sin(), (h * self.a).cos()], -1) @ self.W
        smooth = torch.expm1(-h.abs()) + torch.log1p(h * h) + torch.erf(u) + torch.sqrt(1 + h * h)
        kinked = h.clamp(-0.5, 0.7) + torch.maximum(h, u) - torch.minimum(h * h, u) + torch.relu(u) + h.sign()
        powers = (1 + h * h) ** -0.3 + h**3 + torch.exp(-h * h) ** 2 + torch.log(2 + u.cos())
        chosen = torch.where((h > u) & (h < 2), h, 0.5 * u) + torch.sigmoid(self.c) * torch.where(h > 0, 0.25, 0.75 * u)
        mean = torch.tanh(h.mean(-1, keepdim=True) + u.sum(-1, keepdim=True))
        slope = torch.sigmoid(both) * smooth + 0.1 * kinked + 0.1 * powers + chosen + mean * self.c - 3 * h
        return slope.unsqueeze(-2)


QUICK = [
    ("oscillator", "semi_implicit_euler"),
    ("hamiltonian_oscillator", "semi_implicit_euler"),
    ("lipschitz", "euler"),
    ("multiscale", "semi_implicit_euler"),
    ("linear_oscillator", "imex_euler"),
    ("leaky", "rk4"),
]


COMPILE = """
import importlib, json, sys
import torch
import neuralosc, solvers
from solvers.compiled.triton import compiler
from solvers.compiled.step.refused import Refused
from tests.fields import make_field

name, solver, hidden, precision = sys.argv[1:]
calls = []

def stop(field, call, *_):
    calls.append(call)
    raise Refused("only compiled")

importlib.import_module("solvers.run.backend").self_check = stop
compiler.target = lambda state: compiler.Target(90, precision)
rnn = neuralosc.ContinuousRNN(make_field(name, 2, int(hidden)).float(), solver, 0.1)
try:
    with solvers.backend("triton"):
        rnn.solve(torch.randn(2, 3, 2))
except solvers.PairingError as error:
    if not calls:
        raise
source = calls[0].kernel.source
"""
REPORTS = "print(json.dumps([vars(compiler.report(source, which, 90, torch.float32)) for which in (0, 1)]))"


def reports(name, solver, hidden, precision, before="", after=REPORTS):
    """What both kernels take, compiled for compute capability 9.0; or what other code prints of `source` as JSON."""
    if os.name != "posix" or not (importlib.util.find_spec("triton.backends") and _has_assembler()):
        pytest.skip("Triton's assembler is not there")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    code = "\n".join((before, textwrap.dedent(COMPILE), after))
    command = [sys.executable, "-W", "ignore", "-c", code, name, solver, str(hidden), precision]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def _has_assembler():
    from triton import knobs

    try:
        return bool(knobs.nvidia.ptxas.path and knobs.nvidia.cuobjdump.path)
    except (AttributeError, RuntimeError):
        return False
