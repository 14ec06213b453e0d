"""What the published weights of ODE-RNN and latent ODE, of one code, have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from neuralosc.named.published import Keys, perceptron


def published_field(keys: Keys, unit: str, net: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes and parameters of a masked `JumpGRU` with the update "gru_unit", of the published keys below two places."""
    gates = [keys.maps(f"{unit}.{gate}", (0, 2)) for gate in ("update_gate", "reset_gate", "new_state_net")]
    firsts, outs = [first for first, _ in gates], [out for _, out in gates]
    maps, hidden, units = keys.maps(net) or keys.maps(net, (0,)), len(outs[0][1]), len(firsts[0][1])
    inner = torch.cat([weight for weight, _ in firsts])
    values = {
        "gates.V.weight": inner[:, 2 * hidden :],
        "gates.V.bias": torch.cat([bias for _, bias in firsts]),
        "gates.gates.weight": inner[: 2 * units, : 2 * hidden],
        "gates.new.weight": inner[2 * units :, : 2 * hidden],
    }
    places = [f"gates.{gate}_out" for gate in ("update", "reset", "new")]
    places += [f"net.{2 * i}" for i in range(len(maps))]
    for place, (weight, bias) in zip(places, [*outs, *maps], strict=True):
        values |= {f"{place}.weight": weight, f"{place}.bias": bias}
    sizes = {
        "features": (inner.shape[1] - 2 * hidden) // 2, "hidden": hidden, "field_layers": len(maps) - 2,
        "units": len(maps[0][1]), "gate_units": units,
    }  # fmt: skip
    return sizes, values


def published_classifier(keys: Keys, size: int) -> dict[str, nn.Module]:
    """The classifier of a published model, if it has one."""
    maps = keys.maps("classifier")
    return {"classifier": perceptron(keys.name, size, maps, nn.ReLU)} if maps else {}
