"""Compilers that are broken, each in its way: refused with a reason of one line, and never an exception."""

import ctypes
import os
import subprocess
import types

import pytest
import torch

import neuralosc
import solvers
from solvers.compiled.cpp import compiler
from solvers.compiled.passes import cache
from solvers.compiled.step.refused import Unavailable

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the compilers are shell scripts")

SOURCE = 'extern "C" int answer() { return 42; }\n'

#: What a compiler does when it is asked for something other than its version, and words of the reason.
BROKEN = {
    "fails": ("echo first >&2; echo no space left >&2; exit 1", "failed: no space left"),
    "says nothing": ("exit 1", "failed: no message"),
    "no UTF-8": (r"printf '\377\376 erreur \351\n' >&2; exit 1", "erreur"),
    "a long line": ("head -c 100000 /dev/zero | tr '\\0' x >&2; exit 1", "failed: xxx"),
    "no text": ("head -c 1000 /dev/zero >&2; exit 1", "failed: ????"),
    "killed": ("kill -9 $$", "failed: no message"),
    "makes nothing": ("exit 0", "failed: no message"),
    "makes something else": ('for last; do :; done; echo "no object" > "$last"', "OSError"),
    "hangs": ("exec sleep 60", "does not end within 0.5 s"),
}


@pytest.fixture(autouse=True)
def _fresh(tmp_path, monkeypatch):
    monkeypatch.setenv(cache.CACHE, str(tmp_path / "kept"))
    monkeypatch.setattr(compiler, "_broken", {})


def script(tmp_path, monkeypatch, text, version="echo a compiler"):
    path = tmp_path / "compiler"
    path.write_text(f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; exit 0; fi\n{text}\n')
    path.chmod(0o755)
    monkeypatch.setenv(compiler.COMPILER, str(path))
    return path


def working(monkeypatch):
    """The compiler that is there."""
    monkeypatch.delenv(compiler.COMPILER, raising=False)
    return compiler.compiler()


def kept(tmp_path, monkeypatch):
    """The object that an earlier process compiled; this one has not loaded it, and finds none of its name in memory."""
    working(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(ctypes, "CDLL", lambda path: types.SimpleNamespace(answer=None))
        compiler.library(SOURCE, "answer")
    (path,) = (tmp_path / "kept").glob("*.so")
    return path


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_compiler_is_refused_in_one_line_and_leaves_nothing(kind, tmp_path, monkeypatch, one_line):
    text, word = BROKEN[kind]
    script(tmp_path, monkeypatch, text)
    monkeypatch.setattr(compiler, "SECONDS", 0.5)
    with pytest.raises(Unavailable) as error:
        compiler.library(SOURCE, "answer")
    one_line(error, word)
    left = [path.name for path in (tmp_path / "kept").iterdir() if path.is_dir()]
    assert not left


@pytest.mark.parametrize("content", [b"#!/no/such/interpreter\n", b"\x7fELF no program", b""])
def test_a_compiler_that_does_not_run_is_tried_once(content, tmp_path, monkeypatch, one_line):
    path = script(tmp_path, monkeypatch, "")
    path.write_bytes(content)
    with pytest.raises(Unavailable) as error:
        compiler.library(SOURCE)
    one_line(error, path, "does not run")
    monkeypatch.setattr(subprocess, "run", None)
    assert str(error.value) in compiler.lacking_compiler()
    monkeypatch.undo()
    assert not compiler.lacking_compiler()


def test_a_compiler_may_say_its_version_in_any_encoding(tmp_path, monkeypatch):
    real = working(monkeypatch)
    script(tmp_path, monkeypatch, f'exec {real} "$@"', version=r"printf '\377\351\n'")
    assert compiler.library(SOURCE, "answer").answer() == 42


def test_an_object_without_the_functions_is_refused(monkeypatch, one_line):
    working(monkeypatch)
    for _ in range(2):
        with pytest.raises(Unavailable) as error:
            compiler.library(SOURCE, "question")
        one_line(error, "question")


@pytest.mark.parametrize("damage", [lambda whole: b"", lambda whole: whole[:5000], lambda whole: whole[:-1] + b"?"])
def test_a_damaged_object_is_compiled_anew(damage, tmp_path, monkeypatch):
    path = kept(tmp_path, monkeypatch)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert compiler.library(SOURCE, "answer").answer() == 42
    assert path.read_bytes() == whole


def test_an_object_that_goes_while_it_is_loaded_is_compiled_anew(tmp_path, monkeypatch):
    kept(tmp_path, monkeypatch)
    load, calls = ctypes.CDLL, []

    def gone(path):
        calls.append(path)
        if len(calls) == 1:
            os.unlink(path)
        return load(path)

    monkeypatch.setattr(ctypes, "CDLL", gone)
    assert compiler.library(SOURCE, "answer").answer() == 42 and len(calls) == 2


def test_an_object_in_an_open_folder_is_not_loaded(tmp_path, monkeypatch):
    """Whoever can write into the folder can plant one under the name that is looked for."""
    path = kept(tmp_path, monkeypatch)
    path.parent.chmod(0o777)
    load, loaded = ctypes.CDLL, []
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(path) or load(path))
    monkeypatch.setattr(cache, "_warned", set())
    with pytest.warns(RuntimeWarning, match="others can write"):
        assert compiler.library(SOURCE, "answer").answer() == 42
    assert str(path) not in loaded and len(loaded) == 1


X = torch.randn(2, 70, 3, generator=torch.Generator().manual_seed(1))


def test_without_a_working_compiler_the_loop_of_torch_runs_and_says_why(tmp_path, monkeypatch):
    rnn = neuralosc.CoRNN(3, 5)
    with solvers.backend("plain"):
        expected = rnn(X)[0]
    path = script(tmp_path, monkeypatch, "echo broken >&2; exit 1")
    for _ in range(2):
        solution = rnn.solve(X)
        record = solution.trajectories[0].record
        assert record.path == "torch" and record.reason == f"the compiler {path} failed: broken"
        torch.testing.assert_close(solution.output, expected, rtol=1e-5, atol=1e-6)
    with solvers.backend("compiled"), pytest.raises(solvers.PairingError, match="failed: broken"):
        rnn(X)


@pytest.mark.parametrize("gradient", ["backprop", "reversible"])
def test_the_loop_of_torch_gives_the_gradient_in_its_place(gradient, tmp_path, monkeypatch):
    rnn = neuralosc.UnICORNN(3, 5).with_solver("semi_implicit_euler", gradient=gradient)
    script(tmp_path, monkeypatch, "exit 1")
    gradients = []
    for backend in ("auto", "plain"):
        with solvers.backend(backend):
            solution = rnn.solve(X)
        assert solution.trajectories[0].record.path == {"auto": "torch", "plain": "plain"}[backend]
        gradients.append(torch.autograd.grad(solution.output.square().mean(), list(rnn.parameters())))
    for fast, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)


def test_where_nothing_can_be_kept_the_loop_is_compiled_for_the_process(monkeypatch):
    working(monkeypatch)
    monkeypatch.setenv(cache.CACHE, "/dev/null/folder")
    monkeypatch.setattr(cache, "_warned", set())
    with pytest.warns(RuntimeWarning, match="not kept for other processes"):
        record = neuralosc.CoRNN(3, 5).solve(X).trajectories[0].record
    assert record.path == "compiled" and not record.reason
