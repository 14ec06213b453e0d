"""Every error of the project says the same after a copy, and from another process."""

import concurrent.futures
import copy
import importlib
import inspect
import multiprocessing
import pathlib
import pickle
import re

import pytest

import experiments
import neuralosc
import solvers
from solvers import errors


def _every_error():
    found = []
    for package in (solvers, neuralosc, experiments):
        root = pathlib.Path(package.__file__).parent
        for path in sorted(root.rglob("*.py")):
            names = re.findall(r"^class (\w+)\(\w*(?:Error|Exception)\):", path.read_text(), re.MULTILINE)
            module = ".".join((package.__name__, *path.relative_to(root).with_suffix("").parts))
            found += [getattr(importlib.import_module(module), name) for name in names]
    return found


def _made(kind):
    if not issubclass(kind, errors.NumericalError):
        return kind("the reason")
    extra = {"samples": (2, 5), "residual": 0.25, "iterations": 7} if kind is errors.ConvergenceError else {}
    wanted = inspect.signature(kind).parameters
    error = kind("the reason", **{name: value for name, value in extra.items() if name in wanted})
    error.sample, error.step, error.time = 2, 3, 0.5
    return error


@pytest.mark.parametrize("kind", _every_error(), ids=lambda kind: kind.__name__)
def test_errors_survive_copies_and_pickles(kind):
    error = _made(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert (type(again), str(again), again.args, vars(again)) == (kind, str(error), error.args, vars(error))
    for again in (copy.copy(error), copy.deepcopy(error)):
        assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def _fail():
    raise errors.ConvergenceError("the reason", samples=(4,), residual=0.5, iterations=3)


@pytest.mark.slow
def test_errors_come_back_from_worker_processes():
    spawned = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawned) as pool:
        error = pool.submit(_fail).exception(60)
    assert isinstance(error, errors.ConvergenceError)
    assert (error.samples, error.residual, error.iterations, error.sample) == ((4,), 0.5, 3, 4)
