"""Several processes of one run, as torchrun starts them: who leads, what each does, and how all of them end together.

Every process has the same model and computes its part of each batch. What is written, printed and asked is the business
of the first one, which leads. A process that fails tells the others at the next step, so that all end with its failure.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from solvers.errors import InputError, NumericalError

if TYPE_CHECKING:
    from experiments.train.scoring import Totals

T = TypeVar("T")

# What the libraries below say when another process is gone.
_GONE = (
    "closed by peer",
    "connection reset",
    "connection refused",
    "timed out",
    "broken pipe",
    "process group watchdog",
)


class LostProcessError(NumericalError):
    """Another process of the run ended without a word."""

    advice = "look for its message, or for that of torchrun; go on with --resume"


@dataclass
class _State:
    """Of this process: whether it takes part, was interrupted, and failed as all did, or alone."""

    active: bool = False
    interrupted: bool = False
    shared: bool = False
    alone: bool = False


_state = _State()


def launched() -> int:
    """Processes that torchrun started, 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def leads() -> bool:
    """Whether this process writes, prints and asks."""
    return launched() == 1 or os.environ["RANK"] == "0"


def speaks() -> bool:
    """Whether this process says why it failed: the first one for all, or one that failed alone."""
    return leads() or _state.alone


def count() -> int:
    """Processes that share the work that is being done."""
    return launched() if _state.active else 1


def rank() -> int:
    """Which of them this is."""
    return int(os.environ["RANK"]) if _state.active else 0


def on_this_machine() -> int:
    """How many of them run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if _state.active else 1


def require_one(command: str) -> None:
    """Refuse several processes where nothing is shared.

    Raises:
        InputError: there are several.
    """
    if launched() > 1:
        raise InputError(f"{command} runs in one process, and torchrun started {launched()}: leave torchrun out")


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Share what is done inside among the processes that torchrun started; nothing where there is one.

    Raises:
        LostProcessError: another one ended.
    """
    if launched() == 1 or _state.active:
        yield
        return
    _begin()
    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, _interrupt) if main else None
    _state.active, _state.shared, _state.interrupted = True, False, False
    try:
        yield
    except BaseException as error:
        _state.alone = not _state.shared
        said = explained(error)
        if said is error:
            raise
        raise said from error
    finally:
        _state.active = False
        if main:
            # torchrun passes the signal on that a terminal has sent already.
            signal.signal(signal.SIGINT, signal.SIG_IGN if _state.interrupted else before)


def explained(error: BaseException) -> BaseException:
    """A failure, or `LostProcessError` where it is what the libraries below say when another process is gone."""
    if count() == 1 or _state.shared or not isinstance(error, RuntimeError):
        return error
    if not any(word in str(error).lower() for word in _GONE):
        return error
    if threading.current_thread() is threading.main_thread():
        # torchrun is about to end the others: what is left to write and to say takes less than it then waits.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return LostProcessError("another process of this run ended")


def _begin() -> None:
    if not dist.is_initialized():
        place = int(os.environ["LOCAL_RANK"])
        if torch.cuda.is_available() and place < torch.cuda.device_count():
            torch.cuda.set_device(place)
        dist.init_process_group(backend())
        atexit.register(_leave)


def backend() -> str:
    """What the processes talk by: gloo, and nccl for what lies on GPUs."""
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _interrupt(number: int, frame: Any) -> None:
    # Raised at the next step, in all processes.
    _state.interrupted = True


def _leave() -> None:
    """Wait until the first process has said and written all: torchrun ends the others when one has ended."""
    with contextlib.suppress(Exception):
        if not _state.alone:
            dist.all_reduce(torch.zeros(1))
        dist.destroy_process_group()


def together(work: Callable[[], T]) -> T:
    """What `work` gives, if it succeeds in all processes; if not, the first failure is raised in all."""
    if count() == 1:
        return work()
    value, failure = _tried(work)
    _share(failure)
    return value  # type: ignore[return-value]


def first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, which alone does it; its failure is raised in all."""
    if count() == 1:
        return work()
    found: list[Any] = [together(work if leads() else lambda: None)]
    dist.broadcast_object_list(found, src=0)
    result: T = found[0]
    return result


def share(loss: Callable[[], Tensor], totals: Totals) -> Tensor:
    """A loss whose mean over the processes, and so its gradient, is that of the whole batch.

    Args:
        loss: gives the mean loss of the part of this process, and counts it.
        totals: where it is counted, with its weight in the mean over all.

    Raises:
        Exception: that of the first process that failed.
        KeyboardInterrupt: one of them was interrupted.
    """
    if count() == 1:
        return loss()
    before = totals.weight
    value, failure = _tried(loss)
    weight = totals.weight - before
    said = torch.tensor([weight, float(failure is not None), float(_state.interrupted)], dtype=torch.float64)
    dist.all_reduce(said)
    whole, failed, interrupted = said.tolist()
    if failed or interrupted:
        _share(failure)
    assert value is not None
    return value * (count() * weight / whole if whole else 0.0)


def joint(totals: Totals) -> Totals:
    """What all processes have counted."""
    if count() == 1:
        return totals
    parts: list[Any] = [None] * count()
    dist.all_gather_object(parts, totals)
    whole: Totals = parts[0]
    for part in parts[1:]:
        whole.merge(part)
    return whole


def same_buffers(model: nn.Module) -> None:
    """Give every process the buffers of the first, such as the running means of a batch normalization."""
    if count() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        if any(word in str(error).lower() for word in _GONE):
            # Nobody is left to tell it to.
            raise
        return None, error


def _share(failure: Exception | None) -> None:
    """Raise in all processes what the first of them says that failed, if any, or an interruption."""
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, (_packed(failure), _state.interrupted))
    failures = [(place, packed) for place, (packed, _) in enumerate(found) if packed is not None]
    _state.shared = bool(failures) or any(interrupted for _, interrupted in found)
    if failures:
        place, packed = failures[0]
        raise failure if place == rank() and failure is not None else pickle.loads(packed)
    if _state.shared:
        _state.interrupted = True
        raise KeyboardInterrupt


def _packed(failure: Exception | None) -> bytes | None:
    if failure is None:
        return None
    try:
        packed = pickle.dumps(failure)
        pickle.loads(packed)
    except Exception:
        packed = pickle.dumps(RuntimeError(f"{type(failure).__name__}: {failure}"))
    return packed


class JointBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalization over the samples of all processes; of one process that of torch.

    torch's own SyncBatchNorm is for GPUs alone.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """The input `(samples, features, ..)`, normalized."""
        if not self.training or count() == 1:
            normal: Tensor = super().forward(input)
            return normal
        from torch.distributed.nn.functional import all_reduce

        x = input.to(torch.promote_types(input.dtype, torch.float32))
        over, shape = [d for d in range(x.dim()) if d != 1], [1, -1] + [1] * (x.dim() - 2)
        size = x.new_tensor([x.numel() // x.shape[1]])
        *sums, total = all_reduce(torch.cat((x.sum(over), size))).split([x.shape[1], 1])
        mean = sums[0] / total
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(over)) / total
        self._remember(mean.detach(), (variance * total / (total - 1)).detach())
        y = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked.add_(1)
        part = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), part)
        self.running_var.lerp_(variance.to(self.running_var.dtype), part)


def synchronize(model: nn.Module) -> int:
    """Put `JointBatchNorm` in the place of every batch normalization of a model, with its tensors; says how many."""
    changed = 0
    for name, child in list(model.named_children()):
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            norm = JointBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            norm.weight, norm.bias = child.weight, child.bias
            norm.running_mean, norm.running_var = child.running_mean, child.running_var
            norm.num_batches_tracked = child.num_batches_tracked
            norm.train(child.training)
            setattr(model, name, norm)
            changed += 1
        else:
            changed += synchronize(child)
    return changed
