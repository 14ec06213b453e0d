"""Optimizers by name: their options, their groups of parameters, and the learning rate of every step."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import neuralosc
from experiments.command.options import resolve, settings
from experiments.train import optimizers, training
from experiments.train.config import RunConfig
from experiments.train.trainer import optimizer
from experiments.train.training import build, load_model, make_task, resume, train
from solvers.errors import InputError, UnknownNameError

SMALL = {"model_options": {"hidden_size": 8, "dt": 0.2}, "threads": 1, "limit_train_batches": 4}
SHORT = {**SMALL, "task": "adding", "task_options": {"length": 8}, "limit_evaluation_batches": 1}


def config(**changes):
    return RunConfig.from_dict({**SMALL, **changes})


def constants(name, **options):
    return set(optimizers.constants(neuralosc.make(name, input_size=2, hidden_size=6, **options)))


def test_every_optimizer_is_one_of_torch_and_every_option_is_explained():
    for name in optimizers.OPTIMIZERS:
        assert issubclass(optimizers.kind(name), torch.optim.Optimizer)
        assert optimizers.kind(name).__name__.lower() == name
        assert set(optimizers.defaults(name)) <= set(optimizers.OPTIONS), name
    assert [name for name in optimizers.OPTIMIZERS if optimizers.has_momentum(name)] == ["rmsprop", "sgd"]


@pytest.mark.parametrize(
    "name, options",
    [
        ("adam", {"betas": [0.5, 0.9], "eps": 1e-4, "amsgrad": True}),
        ("sgd", {"nesterov": True}),
        ("rmsprop", {"alpha": 0.9, "centered": True}),
        ("adafactor", {"eps": [None, 0.01], "d": 2.0}),
    ],
)
def test_options_reach_the_optimizer(name, options):
    chosen = config(optimizer=name, optimizer_options=options, momentum=0.9 if name == "sgd" else 0.0)
    made = optimizer(build(chosen, make_task(chosen)), chosen)
    for key, value in options.items():
        found = made.param_groups[0][key]
        assert (list(found) if isinstance(found, tuple) else found) == value


def test_options_of_others_are_refused():
    with pytest.raises(UnknownNameError, match="unknown option of optimizer 'adam' 'beta': did you mean 'betas'"):
        config(optimizer_options={"beta": 0.9})
    with pytest.raises(UnknownNameError, match="unknown option of optimizer 'sgd' 'betas'"):
        config(optimizer="sgd", optimizer_options={"betas": [0.9, 0.99]})
    for hidden in ("lr", "maximize", "foreach", "weight_decay", "momentum"):
        with pytest.raises(UnknownNameError, match=f"'{hidden}'"):
            config(optimizer="sgd", optimizer_options={hidden: 1})
    with pytest.raises(InputError, match=r"optimizer_options of 'adam': Invalid beta parameter at index 1: 2"):
        config(optimizer_options={"betas": [0.9, 2.0]})
    with pytest.raises(InputError, match="optimizer_options of 'adam'"):
        config(optimizer_options={"betas": 0.9})


def test_options_are_typed_with_the_word_optimizer_before_them():
    by_key = {setting.key: setting for setting in settings()}
    assert by_key["optimizer_betas"].flag == "--optimizer-betas" and by_key["alpha"].section == "model_options"
    assert by_key["optimizer_lr_decay"].parameter().annotation.__metadata__[0].parser("0.5") == 0.5
    chosen = resolve(RunConfig(), {"optimizer": "rmsprop", "optimizer_alpha": 0.9, "optimizer_centered": True})
    assert chosen.optimizer_options == {"alpha": 0.9, "centered": True}


@pytest.mark.parametrize(
    "name, options, expected",
    [
        ("cornn", {}, set()),
        ("cornn", {"learned": True}, {"fields.0.gamma.raw", "fields.0.epsilon.raw"}),
        ("unicornn", {}, {"fields.0.c"}),
        ("lem", {}, set()),
        ("lipschitz", {}, set()),
        (
            "linoss",
            {"damped": True, "num_layers": 1},
            {f"blocks.0.layer.rnn.fields.0.{p}" for p in ("A", "G", "steps")},
        ),
        ("ltc", {}, {"fields.0.A", "fields.0.tau.raw"}),
        ("exprnn", {"margin": 0.1}, {"fields.0.C", "fields.0.B", "fields.0.s"}),
        ("cayley", {}, {"fields.0.C"}),
        ("phased_lstm", {}, {"fields.0.tau", "fields.0.s", "fields.0.r"}),
        ("noisy", {}, {"fields.0.field.scale.raw"}),
        ("grud", {}, {"fields.0.decay.w", "fields.0.decay.b", "fields.0.R.weight", "fields.0.R.bias"}),
        (
            "ltc_synapse",
            {},
            {f"fields.0.{name}" for name in ("gleak", "vleak", "cm")}
            | {f"fields.0.{part}.{name}" for part in ("synapses", "sensory") for name in ("sigma", "mu", "erev")},
        ),
        ("lstm", {}, set()),
    ],
)
def test_constants_of_the_dynamics(name, options, expected):
    if name in ("linoss", "exprnn", "grud"):
        options = {**options, **({"missing": "mask"} if name == "grud" else {})}
    assert constants(name, **options) == expected


def test_whatever_a_field_names_is_there_under_some_options():
    """A name that no parameter has any more would be a rule that holds for nothing."""
    kinds = [k for k in vars(neuralosc.fields).values() if isinstance(k, type) and vars(k).get("dynamics")]
    assert len(kinds) > 8
    everything = {"damped": True, "margin": 0.1, "mode": "pure", "scales": 2}
    for kind in kinds:
        taken = {key: value for key, value in everything.items() if key in kind.__init__.__code__.co_varnames}
        field = kind(3 if kind.__name__ == "GRUDecay" else 2, 6, **taken)
        for name in kind.dynamics:
            assert isinstance(getattr(field, name), nn.Parameter | nn.Module), f"{kind.__name__}.{name}"


def test_constants_never_decay_also_where_they_are_matrices():
    """Groups of a network, by the names of their parameters."""
    model = neuralosc.make("ltc_synapse", input_size=2, hidden_size=6)
    names = {id(parameter): name for name, parameter in model.named_parameters()}

    def named(groups):
        return [
            ({names[id(p)] for p in group["params"]}, group.get("weight_decay"), group.get("lr_factor"))
            for group in groups
        ]

    everything, constant = set(names.values()), set(optimizers.constants(model))
    weights = {"fields.0.synapses.w", "fields.0.sensory.w"}
    maps = {"fields.0.input_w", "fields.0.input_b"}
    assert everything == weights | maps | constant
    assert named(optimizers.groups(model)) == [(everything, None, None)]
    assert named(optimizers.groups(model, 0.1)) == [(weights, None, None), (maps | constant, 0.0, None)]
    assert named(optimizers.groups(model, 0.0, 0.1)) == [(weights | maps, None, None), (constant, None, 0.1)]
    both = [(weights, None, None), (maps, 0.0, None), (constant, 0.0, 0.1)]
    assert named(optimizers.groups(model, 0.1, 0.1)) == both


def test_a_matrix_of_constants_stays_where_weights_shrink():
    model = neuralosc.make("exprnn", input_size=2, hidden_size=6)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = optimizers.made("sgd", optimizers.groups(model, 0.5), lr=1.0, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    after = dict(model.named_parameters())
    assert torch.equal(after["fields.0.C"], before["fields.0.C"])
    assert torch.equal(after["fields.0.V.weight"], 0.5 * before["fields.0.V.weight"])


def test_reparametrized_constants_are_constants():
    model = neuralosc.make("exprnn", input_size=2, hidden_size=6)
    parametrize.register_parametrization(model.fields[0], "C", nn.Identity())
    assert set(optimizers.constants(model)) == {"fields.0.parametrizations.C.original"}


def test_a_factor_without_constants_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"dynamics_lr is 0\.1, and no constant of the dynamics of this network is tra"
    ):
        train(config(dynamics_lr=0.1, **{"model_options": {"hidden_size": 4}}), root=tmp_path, progress=False)
    assert not list(tmp_path.iterdir())


def test_learning_rates_by_epoch():
    constant = config(lr=0.8, schedule="constant", warmup=2.5, epochs=4)
    assert [constant.learning_rate(epoch) for epoch in range(4)] == pytest.approx([0.32, 0.64, 0.8, 0.8])
    assert constant.learning_rate(0, 1 / 4) == pytest.approx(0.8 / 10)
    assert constant.learning_rate(2, 2 / 4) == 0.8 and constant.learning_rate(2, 1 / 4) == pytest.approx(0.8 * 0.9)
    cosine = config(lr=0.8, warmup=1.0, epochs=4)
    assert cosine.learning_rate(0, 0.25) == pytest.approx(0.2)
    assert [cosine.learning_rate(e) for e in range(4)] == [config(lr=0.8, epochs=4).learning_rate(e) for e in range(4)]
    steps = config(lr=1.0, schedule="milestones", milestones=[1, 3], warmup=2.0, epochs=4)
    assert [steps.learning_rate(epoch) for epoch in range(4)] == pytest.approx([0.5, 0.1, 0.1, 0.01])
    with pytest.raises(InputError, match="warmup is -1"):
        config(warmup=-1)


def recorded(monkeypatch):
    """The learning rates of every group at every step of the runs from here on."""
    rates, plain = [], torch.optim.Adam.step

    def step(self, *args, **kwargs):
        rates.append([group["lr"] for group in self.param_groups])
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    return rates


def test_every_step_has_the_rate_of_its_place(monkeypatch, tmp_path):
    rates = recorded(monkeypatch)
    options = {"hidden_size": 8, "dt": 0.2, "learned": True}
    chosen = RunConfig.from_dict(
        {**SHORT, "model_options": options, "lr": 0.1, "epochs": 2, "warmup": 0.5, "dynamics_lr": 0.25}
    )
    result = train(chosen, root=tmp_path, progress=False)
    half = 0.1 * (1 + math.cos(math.pi / 2)) / 2
    expected = [0.05, 0.1, 0.1, 0.1, half, half, half, half]
    assert [pair[0] for pair in rates] == pytest.approx(expected)
    assert [pair[1] for pair in rates] == pytest.approx([rate / 4 for rate in expected])
    assert len(result.folder.metrics_file.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    "name, momentum", [("adam", 0.0), ("sgd", 0.9), ("rmsprop", 0.5), ("adafactor", 0.0), ("nadam", 0)]
)
def test_a_run_goes_on_across_its_warm_up_to_the_same_weights(name, momentum, tmp_path, monkeypatch):
    chosen = RunConfig.from_dict(
        {**SHORT, "epochs": 3, "warmup": 1.5, "optimizer": name, "momentum": momentum, "lr": 1e-3, "weight_decay": 0.01}
    )
    whole = train(chosen, root=tmp_path, name="whole", progress=False)
    stopped = stop_after_an_epoch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, root=tmp_path, name="parts", progress=False)
    assert stopped == [1]
    monkeypatch.undo()
    parts = resume(tmp_path / "parts", progress=False)
    left, right = (load_model(run.folder)[0].state_dict() for run in (whole, parts))
    assert all(torch.equal(left[key], right[key]) for key in left)
    assert parts.test == whole.test


def stop_after_an_epoch(monkeypatch):
    plain, stopped = training.Keeper.on_train_epoch_end, []

    def end(self, trainer, loop):
        plain(self, trainer, loop)
        stopped.append(len(self.history))
        raise KeyboardInterrupt

    monkeypatch.setattr(training.Keeper, "on_train_epoch_end", end)
    return stopped


def test_moments_of_another_optimizer_are_refused(tmp_path, monkeypatch):
    from experiments.train.checkpoints import load_checkpoint, sealed

    chosen = RunConfig.from_dict({**SHORT, "epochs": 2, "optimizer": "sgd", "momentum": 0.9, "lr": 1e-3})
    stop_after_an_epoch(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(chosen, root=tmp_path, name="run", progress=False)
    monkeypatch.undo()
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = load_checkpoint(last)
    content["optimizer"]["state"][0]["momentum_buffer"] = torch.zeros(3, 5)
    last.write_bytes(sealed(content))
    with pytest.raises(InputError, match=r"does not fit the configuration of its run: moments"):
        resume(tmp_path / "run", progress=False)
