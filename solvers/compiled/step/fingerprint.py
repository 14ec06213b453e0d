"""What tells one kind of step of a field from another: everything that a recorded step holds as it was."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Hashable
from typing import Any

from torch import Tensor, nn

from solvers.base.sharing import Lineage, lineage
from solvers.compiled.step.code import own, trusted
from solvers.compiled.step.columns import Nested
from solvers.compiled.step.refused import Refused
from solvers.compiled.step.survey import Survey

#: The attribute of a field that its memory lies in, to be freed with it.
_MEMORY = "_fingerprint"

#: Kinds of step that are remembered for a field at most.
MOST = 256


class Memory:
    """What is known of the last look at a field.

    Attributes:
        read: names of the tensors whose values its steps read, as numbers or to decide something.
        lost: how often a step had changed where nothing that is looked at had.
        unseen: what its step can reach that may change without being seen to, or "".
    """

    def __init__(self, module: nn.Module) -> None:
        self.owner = weakref.ref(module)
        self.read: frozenset[str] = frozenset()
        self.survey: Survey | None = None
        self.number = -1
        self.lost = 0
        self.unseen = ""

    def __deepcopy__(self, memo: Any) -> None:
        """A copy of the field is another one, of which nothing is known."""

    def __reduce__(self) -> Any:
        return type(None), ()

    def look(self, module: nn.Module) -> int:
        """A number for what the field is now: the same one for the same thing, also if it was another in between."""
        if self.survey is None or not self.survey.unchanged():
            self.survey = None
            survey = Survey(module, self.read)
            self.number = _numbered(module, survey.key(module))
            survey.held.clear()
            self.unseen = survey.unseen
            self.survey = survey
        return self.number

    def learn(self, module: nn.Module, read: dict[int, Tensor]) -> None:
        """Look at the values of these tensors, too, from now on.

        Raises:
            Refused: one of them is not reached from the field, so that a change of it would not be seen.
        """
        if not read:
            return
        survey = Survey(module, self.read)
        survey.key(module)
        if not all(number in survey.named or number in survey.held for number in read):
            raise Refused("it makes numbers of the values of a tensor that is computed, or not kept by the field")
        names = {survey.named[number] for number in read if number in survey.named}
        if not names <= self.read:
            self.read, self.survey = self.read | names, None


#: By the lineage of a field, whose twins have the same steps: a number for each key.
_NUMBERED: weakref.WeakKeyDictionary[Lineage, dict[Hashable, int]] = weakref.WeakKeyDictionary()
_NUMBERS = itertools.count()


def _numbered(module: nn.Module, key: Hashable) -> int:
    known = _NUMBERED.setdefault(lineage(module), {})
    if len(known) > MOST:
        known.clear()
    # Never one that was given before: steps are remembered under it.
    return known.setdefault(key, next(_NUMBERS))


#: Stands for the field in looking at what belongs to none.
_NOBODY = nn.Module()


def memory_of(module: nn.Module) -> Memory:
    """What is known of a field, kept with it."""
    memory: Memory | None = vars(module).get(_MEMORY)
    if memory is None or memory.owner() is not module:
        memory = vars(module)[_MEMORY] = Memory(module)
    return memory


def fingerprint(module: nn.Module, bound: Any, solver: Any) -> Hashable:
    """Everything that a recorded step of a field holds as it was: code, numbers, and what tensors are like.

    Args:
        module: the field as the user gave it.
        bound: the same, with its constants computed.
        solver: what steps it.

    Raises:
        Refused: it has hooks, which a recorded step would not call, or it can read what cannot be looked at.
    """
    parts: list[Hashable] = [memory_of(module).look(module), solver]
    constants = getattr(bound, "constants", {})
    # Tensors among them are arguments of the step; anything else it holds as it is now.
    fixed = {name: value for name, value in constants.items() if not isinstance(value, Tensor)}
    if fixed:
        parts.append(Survey(module).key(fixed))
    if trusted(type(solver)):
        parts.append(_method(type(solver)))
    else:
        parts.append(Survey(module).key(solver))
    return tuple(parts)


#: By the class of a solver: the last look at it, and the number of what was found.
_METHODS: dict[type, tuple[Survey, int]] = {}


def _method(kind: type) -> int:
    """A number for what the code of a solver of this project is now."""
    survey, number = _METHODS.get(kind, (None, -1))
    if survey is None or not survey.unchanged():
        survey = Survey(_NOBODY)
        number = _numbered(_NOBODY, (kind, survey.key(kind)))
        survey.held.clear()
        _METHODS[kind] = survey, number
    return number


def overlooked(module: nn.Module, bound: Any, solver: Any, path: Any) -> str:
    """What a step can read that may change without being seen to; "" where all is looked at before each solve.

    Args:
        module, bound, solver: see `fingerprint`.
        path: what makes the path of an interval.
    """
    foreign = [kind for kind in (type(solver), *_kinds(path)) if not own(kind)]
    if foreign:
        return foreign[0].__name__
    survey = Survey(module)
    try:
        survey.key({k: v for k, v in getattr(bound, "constants", {}).items() if not isinstance(v, Tensor)}, solver)
    except Refused as error:
        return str(error)
    return memory_of(module).unseen or survey.unseen


def _kinds(path: Any) -> list[type]:
    """The classes of what makes a path, and those within it."""
    if isinstance(path, Nested):
        return [kind for each in (path.kind, *(inner for _, inner in path.inner)) for kind in _kinds(each)]
    return [path if isinstance(path, type) else type(path)]
