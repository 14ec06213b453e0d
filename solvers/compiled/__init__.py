"""The compiled loop: the same steps, many times, with less overhead. Same numbers, same gradients.

A step of a solver is products of the state with parameter matrices and arithmetic between them. It is recorded from
the plain Python that takes it, and run over a whole sequence by one generated function:

    carried   what the solver carries from step to step, as one tensor
    inputs    clock and control paths, as whole tensors over the intervals
    trace     one plain step recorded; what depends on parameters alone is split off and left to torch
    lower     the recorded operations as a graph of rows, columns and products (`ir`); what is not understood is refused
    grad      the vector-Jacobian product of that graph, in the same language
    plan      which products merge, what is saved and what computed again, and in which order
    overlay   which of the saved values the gradients of inputs are written over
    emit_cpu  the plan as C++
    build     compiled by the compiler that is there, kept in a folder
    emit_torch, run_torch  the same plan as Python on tensors, for where there is no compiler
    emit_gpu  the plan as Triton, for tensors on a GPU; gpu_pieces says where values are cut, gpu_math what Triton lacks
    gpu_build how its kernels lie on the device (gpu_layout), and what they take there
    makers    what makes a kernel of a plan: C++, pure torch or Triton
    kernel    one for each different step of a field, found again at the next solve
    run       its call over a sequence, on several threads, as one autograd function; gpu_run the same on a GPU
    segmented the same a segment at a time, whose start is stored (gradient 'checkpoint') or rebuilt ('reversible')
    products  the matrix products of a loop alone, which no path can be faster than
    backend   which path a solve takes, a self-check against the plain path, and the record of why

Nothing here knows a model or a solver by name: a field of one's own under any fixed-step solver takes the same way.
What cannot take it runs on the plain path, and the `Record` of the trajectory says why.
"""

from solvers.compiled.backend import BACKENDS, PLAIN, Record, attempt, backend, get_backend, set_backend
from solvers.compiled.carried import States
from solvers.compiled.memory import release
from solvers.compiled.products import Products

__all__ = [
    "BACKENDS",
    "PLAIN",
    "Products",
    "Record",
    "States",
    "attempt",
    "backend",
    "get_backend",
    "release",
    "set_backend",
]
