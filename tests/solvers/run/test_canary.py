"""One step of a run by kernels compared with the plain one: the part of a run that is taken for it."""

import torch

import solvers
from solvers.base.clock import Clock
from solvers.base.control import Paths
from solvers.base.loop import Loop
from solvers.base.pieces import Held
from solvers.base.series import Series
from solvers.methods.impulsive import Arriving
from solvers.run.canary import of_sample


def test_the_loop_of_one_sample_has_its_part_of_paths_within_paths():
    values, arrives, spans = torch.randn(4, 6, 2), torch.rand(4, 6, 1), torch.rand(4, 6)
    clock = Clock.of_spans(spans)
    for columns in (Series(values), values.unbind(1)):
        paths = Paths(Arriving, path=Paths(Held, value=columns), at=Series(arrives))
        loop = Loop(lambda t, state, u: u - state, solvers.get("euler"), paths, clock, 1)
        part = of_sample(loop, 4, 2, 5, 1)
        assert len(part) == 3
        for i, path in enumerate(part.paths):
            assert torch.equal(path.path.value, values[1:2, 2 + i]) and torch.equal(path.at, arrives[1:2, 2 + i])
            assert part.clock.spans[i].item() == spans[1, 2 + i]
