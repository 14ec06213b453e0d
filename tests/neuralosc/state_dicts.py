"""State dicts of published models, of golden files in whose names the dots are underscores."""

import re

ODE = (
    "GRU_update", "update_gate", "reset_gate", "new_state_net", "z0_diffeq_solver", "diffeq_solver", "ode_func",
    "gradient_net", "decoder",
)  # fmt: skip

#: Names of modules, by the model.
MODULES = {
    "odernn": ("ode_gru", *ODE),
    "latent_ode": ("encoder_z0", "transform_z0", *ODE),
    "odelstm": ("rnn_cell", "lstm", "f_node"),
    "grud": ("rnn_cell", "temp_decay_h", "temp_decay_x"),
    "gruodebayes": ("gru_c", "gru_obs", "gru_d", "p_model", "classification_model", "covariates_map"),
}

#: What has a gradient and is no parameter.
INPUTS = ("x", "X", "timespans", "cov", "empirical_mean")


def state_dict(model, g):
    """The parameters of a golden file, with dots behind the names of modules, places and before kinds of parameters."""
    found = {}
    for key in (name.removeprefix("grad_") for name in g if name.startswith("grad_")):
        if key in INPUTS:
            continue
        name = re.sub(r"_(weight|bias)$", r".\1", re.sub(r"_(\d+)_", r".\1.", key))
        for module in MODULES[model]:
            name = name.replace(f"{module}_", f"{module}.")
        found[name] = g[key]
    return found
