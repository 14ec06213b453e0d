"""How the files in `saved` were written: what `neuralosc.save` wrote of a network, and what that computes.

They hold that what was once saved stays readable: a kind that comes anew is written, the others are left as they are.

    python tests/golden/make_saved.py NAME ...

The name "model" stands for a whole model, in `saved_models`.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import neuralosc

FOLDER = Path(__file__).parent / "saved"

#: Beside each named network as it comes: what a configuration can hold besides.
VARIANTS = {
    "cornn-swapped": ("cornn", {"solver": "stormer_verlet", "substeps": 2, "learned": True, "coupled": False}),
    "cornn-channels": ("cornn", {"gamma": [0.5, 1.0, 2.0, 1.0], "gradient": {"name": "checkpoint", "segments": 2}}),
    "unicornn-stack": ("unicornn", {"num_layers": 3, "dt": [0.1, 0.2, 0.3], "gradient": "reversible"}),
    "lipschitz-options": ("lipschitz", {"solver": {"name": "dopri5", "rtol": 1e-9}, "control": "linear"}),
    "gru-directions": ("gru", {"num_layers": 2, "bidirectional": True, "residual": True}),
    "lem-missing": ("lem", {"missing": "hold", "max_dt": 0.5}),
    "linoss-damped": ("linoss", {"discretization": "IMEX", "damped": True, "num_layers": 2}),
}


def write(name: str) -> None:
    """A small network, and its output for a short input."""
    torch.manual_seed(0)
    model, settings = VARIANTS.get(name, (name, {}))
    rnn = neuralosc.make(model, input_size=2, hidden_size=4, **settings).double().eval()
    neuralosc.save(rnn, FOLDER / f"{name}.safetensors")
    x = torch.randn(2, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        output = rnn(x)[0]
    save_file({"x": x, "output": output.contiguous()}, FOLDER / f"{name}.output.safetensors")


def write_model() -> None:
    """A small model with all of its parts, and what it predicts of a series."""
    torch.manual_seed(0)
    rnn = neuralosc.make("lem", input_size=2, hidden_size=4, missing="hold")
    collator = neuralosc.Collator(unit="1h", first=0.5, duplicates="last", order="sort")
    model = neuralosc.SequenceModel(rnn, neuralosc.Readout(4, 3, "every"), collator).double()
    x = 50 + 9 * torch.randn(5, 4, 2, dtype=torch.float64)
    model.fit_scaling(x, targets=10 * torch.randn(5, 4, 3, dtype=torch.float64))
    neuralosc.save(model, FOLDER.parent / "saved_models" / "lem.safetensors")
    minutes = torch.tensor([0, 45, 45, 240, 200])
    answers = torch.from_numpy(model.predict(minutes.numpy().astype("m8[m]"), x[:, 0]))
    values = {"minutes": minutes, "values": x[:, 0].contiguous(), "answers": answers}
    save_file(values, FOLDER.parent / "saved_models" / "lem.answers.safetensors")


if __name__ == "__main__":
    for each in sys.argv[1:]:
        write_model() if each == "model" else write(each)
