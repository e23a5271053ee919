"""A run that is wrong says so: each watch, each one tried."""

import json
import os
from pathlib import Path

import pytest
import torch

import lorica
from lorica.core.adapter import Adapter
from lorica.errors import ConfigError, ResourceError, TrainingError
from lorica.methods.lora import LoraAdapter
from lorica.training import loop
from lorica.training.checkpoint import Progress
from lorica.training.run import Run
from lorica.training.watch import check_moved, check_rise, notices_of_rise
from tests.training.rows import adapter, settings


def test_a_bypassed_adapter_is_found_on_the_first_step(small_base, tmp_path, monkeypatch):
    monkeypatch.setattr(LoraAdapter, "after", Adapter.after)  # as if the layer were never called
    with pytest.raises(TrainingError, match="does not depend on the adapter"):
        lorica.train(**settings(small_base, tmp_path), show=False)


def test_one_bypassed_layer_is_found(small_base, tmp_path, monkeypatch):
    own = LoraAdapter.after
    monkeypatch.setattr(
        LoraAdapter,
        "after",
        lambda self, x, y, base: y if x.shape[-1] > 32 else own(self, x, y, base),
    )
    with pytest.raises(TrainingError, match="4 of 28 trained tensors got no gradient") as caught:
        lorica.train(**settings(small_base, tmp_path), show=False)
    assert "down_proj" in str(caught.value)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_update(
    small_base, tmp_path, monkeypatch, what
):
    own = LoraAdapter.after
    moved = []

    def after(self, x, y, base):
        y = own(self, x, y, base)
        if what == "loss":
            return y * float("nan")
        if y.requires_grad:
            y.register_hook(lambda grad: grad * float("inf"))
        return y

    monkeypatch.setattr(LoraAdapter, "after", after)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: moved.append(1))
    config = settings(
        small_base, tmp_path, data={"path": str(tmp_path / "rows.jsonl"), "validation": 0}
    )
    with pytest.raises(TrainingError, match="the adapter was not updated") as caught:
        lorica.train(**config, show=False)
    assert "rows.jsonl:" in str(caught.value)
    assert not moved
    assert "NaN" not in (tmp_path / "run" / "events.jsonl").read_text()


def test_a_loss_that_rises_stops(tmp_path):
    config = settings(
        Path("bundled"),
        tmp_path,
        learning_rate=0.3,
        loss_limit=0.5,
        max_steps=40,
        schedule="constant",
        warmup_ratio=0.0,
        max_grad_norm=100.0,
    )
    with pytest.raises(TrainingError, match="loss_limit"):
        lorica.train(**config, show=False)


def test_the_smoothed_loss_forgives_one_bad_step():
    progress = Progress()
    for loss in [3.0] * 20 + [6.0] + [3.0] * 5:
        check_rise(progress, loss, 0.5)
    with pytest.raises(TrainingError):
        for _ in range(10):
            check_rise(progress, 6.0, 0.5)


def test_a_validation_loss_that_rose_is_a_notice():
    progress = Progress(first_eval=2.7, last_eval=3.0)
    assert "worse than the base" in notices_of_rise(progress, None, None)[0]
    assert "worse than runs/alp" in notices_of_rise(progress, None, "runs/alp")[0]
    assert notices_of_rise(progress, {}, None) == []
    assert notices_of_rise(Progress(first_eval=3.0, last_eval=2.7), None, None) == []


def test_tensors_that_never_changed_are_named():
    start = {"a": torch.zeros(2), "b": torch.zeros(2)}
    moved = {"a": torch.nn.Parameter(torch.ones(2)), "b": torch.nn.Parameter(torch.zeros(2))}
    (line,) = check_moved(start, moved, {}, steps=2)
    assert "1 of 2 trained tensors never changed: b" in line
    assert check_moved(start, moved, {}, steps=1) == [], "A of LoRA waits for B"
    with pytest.raises(TrainingError, match="learned nothing"):
        check_moved({"b": start["b"]}, {"b": moved["b"]}, {}, steps=1)


def test_a_run_folder_is_never_overwritten(small_base, tmp_path):
    done = lorica.train(**settings(small_base, tmp_path), show=False)
    before = adapter(done.folder)
    with pytest.raises(ConfigError, match="not overwritten") as caught:
        lorica.train(**settings(small_base, tmp_path, seed=5), show=False)
    assert "--resume" in str(caught.value)
    assert adapter(done.folder).keys() == before.keys()


def test_two_processes_cannot_write_one_run(tmp_path):
    run = Run(tmp_path / "run")
    run.create("")
    with run.lock(), pytest.raises(ResourceError, match="another process"), Run(run.folder).lock():
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_place_is_named(small_base, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(ResourceError, match="locked"):
        lorica.train(
            **settings(small_base, tmp_path, output=str(tmp_path / "locked/run")), show=False
        )


@pytest.mark.slow
def test_a_full_disk_loses_nothing(small_base, tmp_path, monkeypatch):
    """The second checkpoint fails; the first stays whole, and the run goes on from it."""
    import errno

    from lorica.formats import commit

    own, calls = commit.write_tensors, []

    def full(path, tensors):
        calls.append(path)
        if len(calls) == 4:  # the optimizer of the second checkpoint
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        own(path, tensors)

    config = settings(small_base, tmp_path, save_steps=2)
    with monkeypatch.context() as patch:
        patch.setattr(commit, "write_tensors", full)
        with pytest.raises(ResourceError, match="No space left") as caught:
            lorica.train(**config, show=False)
    assert "free some space" in str(caught.value)
    assert [p.name for p in (tmp_path / "run/checkpoints").iterdir()] == ["step-00000002"]
    whole = lorica.train(**settings(small_base, tmp_path / "b", save_steps=2), show=False)
    result = lorica.train(resume=config["output"], show=False)
    assert all(torch.equal(adapter(whole.folder)[k], t) for k, t in adapter(result.folder).items())


def test_early_stopping_keeps_the_best_adapter(small_base, tmp_path, monkeypatch):
    losses = iter([3.0, 2.0, 1.0, 1.5, 1.6, 1.7])
    monkeypatch.setattr(
        "lorica.training.validation.loss_and_accuracy_of_all", lambda _: (next(losses), 0.0)
    )
    seen = {}
    own = loop.evaluate

    def evaluate(state):
        own(state)
        tensors = state.adapter.tensors
        seen[state.progress.step] = {k: t.detach().clone() for k, t in tensors.items()}

    monkeypatch.setattr(loop, "evaluate", evaluate)
    result = lorica.train(
        **settings(small_base, tmp_path, eval_steps=1, early_stopping_patience=2, max_steps=9),
        show=False,
    )
    assert (result.figures["steps"], result.figures["adapter_step"]) == (4, 2)
    assert result.figures["held_out_loss"] == {"before": 3.0, "after": 1.0}
    assert any("step 2, the best" in line for line in result.notices)
    kept = adapter(result.folder)["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"]
    assert torch.equal(kept, seen[2]["model.layers.0.self_attn.q_proj.b"])


def test_a_tracker_that_fails_does_not_end_the_run(small_base, tmp_path, monkeypatch):
    def broken(name, folder, config):
        def take(event):
            raise ConnectionError("the tracker is away")

        return take

    monkeypatch.setattr("lorica.training.build.start_tracker", broken)
    result = lorica.train(**settings(small_base, tmp_path, report_to=["wandb"]), show=False)
    log = (result.folder / "events.jsonl").read_text()
    assert "the tracker is away" in log


@pytest.mark.slow
def test_tensorboard_gets_the_figures(small_base, tmp_path):
    pytest.importorskip("tensorboard")
    result = lorica.train(**settings(small_base, tmp_path, report_to=["tensorboard"]), show=False)
    files = list((result.folder / "tensorboard").iterdir())
    assert files
    assert files[0].stat().st_size > 500


def test_the_run_folder_holds_everything(small_base, tmp_path):
    result = lorica.train(**settings(small_base, tmp_path), show=False)
    names = {p.name for p in result.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "events.jsonl",
        "checkpoints",
        "adapter",
        "results.json",
        "loss.png",
    }
    manifest = json.loads((result.folder / "adapter/manifest.json").read_text())
    assert manifest["base"]["path"] == str(small_base.resolve())
    assert manifest["base"]["tokenizer"]
    assert (result.folder / "loss.png").read_bytes()[:4] == b"\x89PNG"
