"""Where the time of training goes, by Lightning's profiler."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch.profilers import SimpleProfiler
from rich.table import Table

#: What the model's own computation is measured as, in training and in evaluation.
MODEL = "model"

#: The parts of an epoch, and what they are.
PARTS = {
    "data": "taking batches, and bringing them to the device",
    "forward": "the model answers training batches",
    "backward": "gradients",
    "optimizer": "clipping, and the step of the optimizer",
    "evaluation": "the model answers validation batches",
    "scoring": "loss and figures",
    "writing": "checkpoints, logs and what is shown",
    "other": "the loop itself",
}
# What Lightning calls of a callback within an epoch.
_HOOKS = (
    ".on_train_epoch_start",
    ".on_train_epoch_end",
    ".on_train_batch_start",
    ".on_train_batch_end",
    ".on_before_backward",
    ".on_after_backward",
    ".on_before_zero_grad",
    ".on_validation_batch_start",
    ".on_validation_batch_end",
    ".on_validation_epoch_start",
    ".on_validation_epoch_end",
)

#: Of these the network is what takes the time.
OF_THE_MODEL = ("forward", "backward", "optimizer", "evaluation")


class Profile:
    """Seconds that a training spends in each part of its epochs.

    Attributes:
        profiler: what Lightning's trainer takes.
    """

    def __init__(self) -> None:
        self.profiler = SimpleProfiler()

    def seconds(self) -> dict[str, float]:
        """Seconds of each part of `PARTS`, which sum to those of the epochs."""
        return parts({name: sum(values) for name, values in self.profiler.recorded_durations.items()})

    def table(self) -> Table:
        """Seconds and shares; without an epoch there are none."""
        found = self.seconds()
        whole = sum(found.values())
        table = Table("part", "seconds", "share", "what it is", title="Where the time of the epochs went")
        for name, seconds in found.items():
            table.add_row(name, f"{seconds:.2f}", f"{seconds / whole:.1%}" if whole else "-", PARTS[name])
        model = sum(found[name] for name in OF_THE_MODEL)
        share = f"{model / whole:.1%}" if whole else "-"
        table.add_row("whole", f"{whole:.2f}", "100.0%" if whole else "-", f"of which in the model {share}")
        return table


def parts(recorded: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each part, from those of Lightning's actions, of which some hold others."""

    def of(*ends: str) -> float:
        return sum(seconds for name, seconds in recorded.items() if name.endswith(ends))

    # Lightning's epoch is without what happens at its two ends.
    ends = of(".on_train_epoch_start", ".on_train_epoch_end")
    whole, step, backward = of("run_training_epoch") + ends, of(".training_step"), of(".backward")
    forward, answered = of(f"train {MODEL}"), of(f"evaluation {MODEL}")
    validation = of(".validation_step")
    found = {
        "data": of("_next", ".batch_to_device"),
        "forward": forward,
        "backward": backward,
        # The closure of the optimizer's step is the training step with its gradient.
        "optimizer": of("TrainingLoop.optimizer_step") - step - backward,
        "evaluation": answered,
        "scoring": step - forward + validation - answered,
        "writing": sum(s for name, s in recorded.items() if name.startswith("[Callback]") and name.endswith(_HOOKS)),
    }
    return {**found, "other": whole - sum(found.values())}
