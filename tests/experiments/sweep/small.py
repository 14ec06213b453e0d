"""A training of a moment, for sweeps over it."""

SETTINGS = {
    "task": "adding",
    "task_options": {"length": 6, "train_size": 40, "validation_size": 20, "test_size": 20},
    "epochs": 2,
    "batch_size": 20,
    "threads": 1,
}
#: The same as options of the command.
OPTIONS = (
    "--task adding --length 6 --train-size 40 --validation-size 20 --test-size 20 --epochs 2 --batch-size 20 "
    "--threads 1"
)
