"""The compiled loop: the same steps, many times, with less overhead. Same numbers, same gradients.

A step of a solver is products of the state with parameter matrices and arithmetic between them. It is recorded from
the plain Python that takes it, and run over a whole sequence by one generated function:

    step      one plain step recorded (`trace`), as a graph of rows, columns and products (`lower`, `ir`); what is not
              understood is refused. `pullback` is its vector-Jacobian product in the same language, `plan` says which
              products merge, what is saved and in which order, `reuse` which saved values gradients are written over
    passes    the whole sequence: what a kernel reads (`arguments`, `call`), the autograd function around it
              (`autograd`), and the same a segment at a time (`segmented`)
    cpp       the plan as C++, compiled by the compiler that is there, on several threads
    tensors   the same plan as Python on tensors, for where there is no compiler
    triton    the plan as Triton kernels, persistent or one a level
    kernel    one for each different step of a field, found again at the next solve
    products  the matrix products of a loop alone, which no path can be faster than

Nothing here knows a model or a solver by name: a field of one's own under any fixed-step solver takes the same way.
What cannot take it runs on the plain path, and the `Record` of the trajectory says why.
"""

from solvers.compiled.passes.memory import release
from solvers.compiled.passes.states import States
from solvers.compiled.products import Products

__all__ = ["Products", "States", "release"]
