"""Several runs over one base, trained at once: each comes to what it comes to alone."""

import json
import os
import signal
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import lorica
from lorica.base.batching import Batching
from lorica.core.attach import activate, routed
from lorica.core.route import BySegment, Segment
from lorica.errors import ConfigError, ResourceError, Stopped, TrainingError
from lorica.training import each
from lorica.training.train import train
from tests.training.rows import adapter, rounding_apart, same, settings, write_rows

METHODS = [
    {"name": "lora", "r": 4},
    {"name": "dora", "r": 2},
    {"name": "ia3"},
    {"name": "vera", "r": 16},
    {"name": "adalora", "r": 4, "target_r": 2, "tinit": 1, "tfinal": 1},
    {"name": "mora", "r": 4},
    {"name": "bottleneck"},
]
DRAWING = [
    {"name": "lora", "r": 4, "dropout": 0.3},
    {"name": "dora", "r": 2, "dropout": 0.2},
    {"name": "adalora", "r": 4, "target_r": 2, "tinit": 1, "tfinal": 1, "dropout": 0.1},
    {"name": "mora", "r": 4, "dropout": 0.1},
    {"name": "vera", "r": 16, "dropout": 0.1},
]


def runs_of(base: Path, folder: Path, methods: list[dict]) -> list[dict]:
    """Runs that differ in rows, rate, batch, steps and seed."""
    runs = []
    for i, method in enumerate(methods):
        data = write_rows(folder / f"rows-{i}.jsonl", 30 + i)
        runs.append(
            settings(
                base,
                folder,
                method=method,
                data={"path": str(data), "validation": 0.1},
                seed=i,
                learning_rate=2e-4 * (1 + i),
                max_steps=6 - i % 3,
                micro_batch_size=2 + i % 2,
                gradient_accumulation_steps=1 + i % 2,
                output=str(folder / f"run-{i}"),
            )
        )
    return runs


@pytest.mark.parametrize(
    "methods",
    [
        METHODS[:3],
        pytest.param(METHODS[3:], marks=pytest.mark.slow),
        pytest.param(DRAWING, marks=pytest.mark.slow),
    ],
    ids=["three", "four others", "with dropout"],
)
def test_each_run_produces_the_adapter_that_it_produces_alone(small_base, tmp_path, methods):
    runs = runs_of(small_base, tmp_path, methods)
    results = lorica.train_each(runs, show=False)
    for i, (run, result) in enumerate(zip(runs, results, strict=True)):
        alone = train(**{**run, "output": str(tmp_path / f"alone-{i}")}, show=False)
        assert rounding_apart(adapter(alone.folder), adapter(result.folder), run), run["method"]
        for key in ("steps", "tokens", "rows", "parameters", "method"):
            assert alone.figures[key] == result.figures[key], key
        before, after = (r.figures["held_out_loss"]["after"] for r in (alone, result))
        assert before == pytest.approx(after, abs=1e-5)
        assert (result.folder / "results.json").is_file()


@pytest.mark.slow
def test_checkpointing_keeps_the_tokens_of_each_apart(small_base, tmp_path):
    changed = {"gradient_checkpointing": True}
    methods = [*METHODS[:2], DRAWING[0]]
    runs = [{**run, **changed} for run in runs_of(small_base, tmp_path, methods)]
    results = lorica.train_each(runs, show=False)
    for i, (run, result) in enumerate(zip(runs, results, strict=True)):
        alone = train(**{**run, "output": str(tmp_path / f"alone-{i}")}, show=False)
        assert rounding_apart(adapter(alone.folder), adapter(result.folder), run)


def test_runs_that_share_no_pass_are_recomputed_with_their_own_adapter(
    small_base, tmp_path, monkeypatch
):
    """Activation checkpointing repeats a forward pass during the backward pass."""
    monkeypatch.setattr(Batching, "joins", lambda self, lengths: False)
    changed = {"gradient_checkpointing": True, "max_steps": 2, "save_steps": 2}
    runs = [{**run, **changed} for run in runs_of(small_base, tmp_path, METHODS[:2])]
    results = lorica.train_each(runs, show=False)
    for i, (run, result) in enumerate(zip(runs, results, strict=True)):
        alone = train(**{**run, "output": str(tmp_path / f"alone-{i}")}, show=False)
        assert rounding_apart(adapter(alone.folder), adapter(result.folder), run)


@pytest.mark.slow
def test_dropout_of_a_run_on_plain_text_is_that_of_the_run_alone(small_base, tmp_path):
    """Almost every position of it is a label, so its last block sees them all; the other's not."""
    runs = runs_of(small_base, tmp_path, DRAWING[:2])
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{i} cats ran home."}) + "\n" for i in range(30)))
    runs[1]["data"] = {"path": str(text), "validation": 0.1}
    results = lorica.train_each(runs, show=False)
    for i, (run, result) in enumerate(zip(runs, results, strict=True)):
        alone = train(**{**run, "output": str(tmp_path / f"alone-{i}")}, show=False)
        assert rounding_apart(adapter(alone.folder), adapter(result.folder), run)


def test_a_run_that_a_watch_stops_leaves_the_others_going(tmp_path):
    good, bad = runs_of(Path("bundled"), tmp_path, METHODS[:1] * 2)
    bad |= {"learning_rate": 30.0, "loss_limit": 0.1, "warmup_ratio": 0.0}
    with pytest.raises(TrainingError, match="1 of 2 runs ended early") as caught:
        lorica.train_each([bad, good], show=False)
    assert "the loss rose" in str(caught.value)
    assert not (Path(bad["output"]) / "adapter").exists()
    alone = train(**{**good, "output": str(tmp_path / "alone")}, show=False)
    assert rounding_apart(adapter(alone.folder), adapter(Path(good["output"])), good)


def test_a_signal_or_a_full_disk_is_the_error_of_all_runs():
    """Also where another run has ended by itself before."""
    states = [Mock(**{"run.folder": f"runs/{i}"}) for i in range(3)]
    diverged = TrainingError("the loss is not finite.", fix="lower the rate")
    for ended in (Stopped("stopped.", signal=15, fix="resume"), ResourceError("full.", fix="free")):
        errors = dict(zip(states, [diverged, ended, ended], strict=True))
        error = each._error_of_all(errors, 3)  # type: ignore[arg-type]
        assert type(error) is type(ended) and "the loss is not finite." in str(error)
        assert error.exit_code == ended.exit_code
    stopped = each._error_of_all(dict.fromkeys(states[1:], Stopped("x", signal=15)), 3)  # type: ignore[arg-type]
    assert stopped.fix == "resume with: lorica train --each runs/1 runs/2"


@pytest.mark.slow
def test_stopped_runs_go_on_together_or_alone(small_base, tmp_path, monkeypatch):
    """And end as if they had never been stopped."""
    runs = runs_of(small_base, tmp_path, METHODS[:2])
    whole = [{**run, "output": f"{run['output']}-whole"} for run in runs]
    lorica.train_each(whole, show=False)
    own, calls = each.evaluate_and_checkpoint, []

    def evaluate_and_checkpoint(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        own(*arguments)

    monkeypatch.setattr(each, "evaluate_and_checkpoint", evaluate_and_checkpoint)
    with pytest.raises(Stopped, match="everything is saved") as caught:
        lorica.train_each(runs, show=False)
    assert caught.value.exit_code == 143
    lorica.train_each([run["output"] for run in runs], show=False)
    for run, uninterrupted in zip(runs, whole, strict=True):
        assert same(adapter(Path(run["output"])), adapter(Path(uninterrupted["output"])))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": "bfloat16"}, "differ in dtype"),
        ({"output": "{0}"}, "several runs have the output"),
        ({"method": {"name": "full"}}, "acts on the tokens of all runs"),
        ({"method": {"name": "prefix_tuning"}}, "acts on the tokens of all runs"),
        ({"modules_to_save": ["norm"]}, "acts on the tokens of all runs"),
        ({"target_modules": ["lm_head"]}, "acts on the tokens of all runs"),
    ],
)
def test_runs_that_do_not_fit_together_are_refused(small_base, tmp_path, changed, message):
    """Before anything is trained, and nothing is left behind."""
    first, second = runs_of(small_base, tmp_path, METHODS[:1] * 2)
    changed = {k: v.format(first["output"]) if k == "output" else v for k, v in changed.items()}
    with pytest.raises(ConfigError, match=message):
        lorica.train_each([first, {**second, **changed}], show=False)
    assert not Path(first["output"]).exists()
    assert not Path(second["output"]).exists()


def test_a_layer_that_sees_other_tokens_is_refused():
    """Not added to the wrong ones."""
    layer = lorica.adapt(torch.nn.Sequential(torch.nn.Linear(3, 3)), lorica.Lora(r=1))
    route = BySegment((Segment(("default",)),), (4,))
    message = r"layer 0 received \(1, 5, 3\), and the packed batch has 4 tokens"
    with routed(layer, route), pytest.raises(ConfigError, match=message):
        layer(torch.ones(1, 5, 3))
    layer(torch.ones(1, 5, 3))


@pytest.mark.parametrize("method", ["lora", "lora_fa", "dora"])
@pytest.mark.parametrize("absent", [1, 0])
def test_gradients_of_segments_are_those_of_each_part(method, absent):
    """In float64; a part without an adapter is the base's. Without one, LoRA does all at once."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4))
    for r, name in enumerate(("one", "two"), start=1):
        lorica.adapt(model, lorica.method(method, r=r, alpha=1.5), name=name)
    activate(model, "one", "two")
    model.double()
    layer = model[0].adapters
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter))
    x = torch.randn(1, 7, 3, dtype=torch.float64, requires_grad=True)
    base = model[0].forward
    names = ("two", *["none"] * absent, "one")
    segments = tuple(Segment((name,)) for name in names)
    route = BySegment(segments, (2, *[1] * absent, 5 - absent))
    layer.adapt_output(route, x, base(x), base).square().sum().backward()
    learned = [p for p in layer.parameters() if p.requires_grad]
    gradients = [x.grad.clone(), *(p.grad.clone() for p in learned)]
    x.grad = None
    model.zero_grad()
    a, b, c = x.split([2, absent, 5 - absent], 1)
    parts = [layer["two"].after(a, base(a), base), base(b), layer["one"].after(c, base(c), base)]
    torch.cat(parts, 1).square().sum().backward()
    for got, want in zip(gradients, [x.grad, *(p.grad for p in learned)], strict=True):
        torch.testing.assert_close(got, want, atol=1e-10, rtol=1e-10)


def test_the_command_names_each_run(small_base, tmp_path, capsys):
    from lorica.cli import run

    recipes = []
    for i, config in enumerate(runs_of(small_base, tmp_path, METHODS[:2])):
        recipes.append(path := tmp_path / f"recipe-{i}.yaml")
        path.write_text(json.dumps(config))
    assert run(["train", "--each", *map(str, recipes), "--max_steps", "2"]) == 0
    out, err = capsys.readouterr()
    for i in range(2):
        assert f"{tmp_path / f'run-{i}'}: held-out loss" in out
        assert f"run-{i}: step 2/2" in err


def test_runs_that_paused_go_on_as_if_they_had_not(small_base, tmp_path):
    names = [{"name": "lora", "r": 4}, {"name": "ia3"}]
    for name in "ab":
        (tmp_path / name).mkdir()
    whole = lorica.train_each(runs_of(small_base, tmp_path / "a", names), show=False)
    halves = lorica.train_each(runs_of(small_base, tmp_path / "b", names), until=3, show=False)
    assert not any((half.folder / "adapter").exists() for half in halves)
    results = lorica.train_each([half.folder for half in halves], show=False)
    for before, after in zip(whole, results, strict=True):
        assert same(adapter(before.folder), adapter(after.folder))
