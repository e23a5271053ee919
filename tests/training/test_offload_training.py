"""A run whose base stays on disk gives the same bits as one whose base is in memory."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import lorica
from lorica.base.offload import OFFLOAD
from lorica.errors import ConfigError
from lorica.formats.open_model import open_model
from tests import small_base
from tests.marks import slow_but
from tests.training.rows import adapter, interrupt, same, settings

pytestmark = pytest.mark.skipif(torch.accelerator.is_available(), reason="bits of the CPU")


@pytest.fixture(scope="module", params=slow_but(["bfloat16"], ["float32", "bfloat16", "float16"]))
def base(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    small_base.model().to(getattr(torch, request.param)).save_pretrained(
        folder, max_shard_size="40KB"
    )
    small_base.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"gradient_checkpointing": True},
        {"method": {"name": "dora", "r": 2}, "modules_to_save": ["lm_head"]},
    ],
    ids=["lora", "checkpointing", "dora"],
)
def test_the_adapter_is_bit_equal_to_the_resident_one(base, tmp_path, more):
    run = {**settings(base, tmp_path), "max_steps": 3, "dtype": "auto", **more}
    for name, offload in (("resident", None), ("disk", "disk")):
        lorica.train(**{**run, "output": str(tmp_path / name)}, offload=offload, show=False)
    assert same(adapter(tmp_path / "resident"), adapter(tmp_path / "disk"))


def test_the_adapter_is_evaluated_and_asked_from_disk(base, tmp_path, capsys):
    """With the same words and losses as from memory."""
    from lorica import cli

    run = {**settings(base, tmp_path), "max_steps": 3, "dtype": "auto"}
    lorica.train(**run, show=False)
    folder, answers, losses = str(run["output"]), [], []
    for more in ([], ["--offload", "disk"]):
        words = ["--prompt", "the cat", "--max_new_tokens", "8", "--json", *more]
        assert cli.run(["generate", folder, *words]) == 0
        answers.append(json.loads(capsys.readouterr().out)["texts"])
        rows = ["--data", run["data"]["path"], "--no-exact-match", "--json"]
        assert cli.run(["eval", folder, *rows, *more]) == 0
        losses.append(json.loads(capsys.readouterr().out)["measures"])
    assert answers[0] == answers[1]
    assert losses[0] == losses[1]
    opened, _ = open_model(folder, offload="disk")
    assert hasattr(opened.model, OFFLOAD)


def test_a_run_is_resumed_with_and_without_offload(base, tmp_path, monkeypatch):
    run = {**settings(base, tmp_path), "max_steps": 4, "save_steps": 2, "dtype": "auto"}
    whole, stopped = str(tmp_path / "whole"), str(tmp_path / "stopped")
    lorica.train(**{**run, "output": whole}, show=False)
    interrupt(monkeypatch, 3, **{**run, "output": stopped, "offload": "disk"})
    other = tmp_path / "other"
    shutil.copytree(stopped, other)
    lorica.train(resume=stopped, show=False)
    lorica.train(resume=str(other), offload=None, show=False)
    assert same(adapter(Path(whole)), adapter(Path(stopped)))
    assert same(adapter(Path(whole)), adapter(other))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"quantisation": "nf4"}, "nf4"),
        ({"method": {"name": "full"}}, "method full"),
        ({"split": "device", "peer": "127.0.0.1:1", "method": {"name": "lora"}}, "split"),
    ],
)
def test_settings_that_cannot_be_with_offload(tmp_path, changed, words):
    with pytest.raises(ConfigError, match=words):
        lorica.train(**settings(Path("bundled"), tmp_path, offload="disk", **changed), show=False)


def test_an_offload_that_cannot_be_is_refused_before_the_rows_are_read(base, tmp_path):
    """They may be a million."""
    (tmp_path / "rows.jsonl").write_text("these are no rows\n")
    own = {"base": str(base), "data": str(tmp_path / "rows.jsonl"), "offload": "cpu"}
    with pytest.raises(ConfigError, match="there is no accelerator"):
        lorica.train(**own, output=str(tmp_path / "run"))
