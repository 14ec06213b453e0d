"""Which values kept for the backward pass the gradient of an input may be written over.

What a step kept is read once, by the backward pass of that step, which then writes as many channels of the gradient of
its inputs. Where the last reading comes before the writing, both can be the same memory. For a Lipschitz network under
the midpoint method that is the difference between 6 and 5 states of the whole sequence at the peak; the price is a
second forward pass where a graph is walked backwards twice.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from solvers.compiled.step.columns import Item
from solvers.compiled.step.ir import Node
from solvers.compiled.step.ops import COLLECTIVE
from solvers.compiled.step.plan import Plan, Program

#: For the number of a saved value, the array ("dstep", ..) it shares and its first column there.
Overlays = dict[int, tuple[Any, int]]


def overlays(program: Program, items: Sequence[Item]) -> Overlays:
    """The saved values that can lie where the gradient of an item will; all of the item's channels, or none."""
    plan = program.backward
    if plan is None or program.divided:
        # The steps of an interval share its gradient, and each has values of its own.
        return {}
    read = {p.operand.array for level in plan.levels for p in level.products}
    read |= {place.array for outer in plan.outers for place in (outer.left, outer.right)}
    nodes = {homes[0].array[1]: node for node, homes in plan.homes.items() if homes[0].array[0] == "saved"}
    free = {i: node for i, node in nodes.items() if node.width > 1 and ("saved", i) not in read}
    reused: Overlays = {}
    for item in items:
        if item.batch and len(item.shape) == 1:
            shared = _shared(plan, ("dstep", item.key, 0), {i: n for i, n in free.items() if i not in reused})
            if sum(free[i].width for i in shared) == item.shape[0]:
                reused.update(shared)
    return reused


def _shared(plan: Plan, array: Hashable, free: dict[int, Node]) -> Overlays:
    reused: Overlays = {}
    if any(p.result.array == array for level in plan.levels for p in level.products):
        # A product is there before the level that stores it.
        return reused
    for number, level in enumerate(plan.levels):
        for node, place in level.stores:
            if place.array != array:
                continue
            fits = (i for i in free if i not in reused and free[i].width == node.width and _done(plan, free[i], number))
            chosen = next(fits, None)
            if chosen is not None:
                reused[chosen] = (array, place.offset)
    return reused


def _done(plan: Plan, saved: Node, number: int) -> bool:
    """Whether nothing reads a value after level `number`, nor there outside of the loop over all its channels."""
    for k, level in enumerate(plan.levels[number:]):
        for target in (*(node for node, _ in level.stores), *(node.args[0] for node in level.sums)):
            if (k or target.width != saved.width) and _reads(target, saved):
                return False
    return True


def _reads(target: Node, saved: Node) -> bool:
    """Whether a value is computed from another by anything but a product or a sum, which were there before."""
    seen, waiting = set(), [target]
    while waiting:
        node = waiting.pop()
        if node is saved:
            return True
        if node not in seen and (node is target or node.op not in COLLECTIVE):
            seen.add(node)
            waiting += node.args
    return False
