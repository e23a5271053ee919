"""Two processes that hold a part of every weight give the adapter of one process."""

import json
from pathlib import Path

import pytest

import lorica
from lorica.core.site import blocks_of
from lorica.errors import ConfigError
from lorica.training.config import read
from lorica.training.placement import Single, placement_for_several, shard_notices
from tests import small_base as small
from tests.training.launch import train_all
from tests.training.rows import adapter, farthest, same, settings, write_rows

BAR = 2e-5
"""Of any entry, after ten steps at 2e-4."""


def folder_of(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def both(base: Path, folder: Path, **changed) -> tuple[dict, dict]:
    """A run for one process, and the same one for two."""
    changed = {"learning_rate": 2e-4, "max_steps": 10, "eval_steps": 5, **changed}
    for side in ("a", "b"):
        rows = write_rows(folder_of(folder / side) / "rows.jsonl")
        lines = [json.loads(line) for line in rows.read_text().splitlines()]
        if changed["method"]["name"] == "hyperlora":
            lines = [{**row, "condition": ["cats", "dogs"][i % 2]} for i, row in enumerate(lines)]
        rows.write_text("".join(json.dumps(row) + "\n" for row in lines))
    alone = settings(base, folder / "a", micro_batch_size=4, gradient_accumulation_steps=2)
    shared = settings(base, folder / "b", micro_batch_size=2, gradient_accumulation_steps=2)
    return {**alone, **changed}, {**shared, "shard": True, **changed}


def check(base: Path, folder: Path, cases: list[dict], **more: str) -> None:
    pairs = [both(base, folder / str(i), **case) for i, case in enumerate(cases)]
    train_all([shared for _, shared in pairs], **more)
    for case, (alone, shared) in zip(cases, pairs, strict=True):
        result = lorica.train(**alone, show=False)
        assert farthest(adapter(result.folder), adapter(Path(shared["output"]))) < BAR, case
        figures = json.loads((Path(shared["output"]) / "results.json").read_text())
        assert figures["held_out_loss"] == pytest.approx(result.figures["held_out_loss"], abs=1e-5)
        assert figures["parameters"] == result.figures["parameters"]
        assert figures["base"] == result.figures["base"]


def test_two_sharded_processes_give_the_adapter_of_one(small_base, tmp_path):
    check(small_base, tmp_path, [{"method": {"name": "lora", "r": 4}}])


@pytest.mark.slow
def test_every_kind_of_trained_tensor_and_of_base_is_sharded_right(small_base, tmp_path):
    lora = {"name": "lora", "r": 4}
    cases = [
        {"method": {"name": "dora", "r": 4}},
        {"method": {"name": "adalora", "r": 4, "tinit": 2, "tfinal": 4}},
        {"method": {"name": "full"}},
        {"method": {"name": "full"}, "early_stopping_patience": 1, "gradient_checkpointing": True},
        {"method": lora, "quantisation": "nf4", "gradient_checkpointing": True},
        {"method": lora, "quantisation": "int8"},
        {"method": {"name": "hyperlora", "r": 2, "latent": 16, "hidden": 4}},
        {"method": lora, "modules_to_save": ["lm_head"]},
    ]
    check(small_base, tmp_path, cases)


@pytest.mark.slow
def test_blocks_that_wait_on_the_cpu_are_sharded_from_there(small_base, tmp_path):
    """As on an accelerator, which need not hold the whole base first."""
    cases = [
        {"method": {"name": "dora", "r": 4}, "gradient_checkpointing": True},
        {"method": {"name": "full"}},
        {"method": {"name": "lora", "r": 4, "init": "pissa"}},
    ]
    check(small_base, tmp_path, cases, LORICA_BLOCKS_WAIT="1")


def test_shard_with_what_it_cannot_be_with_is_refused():
    plain = {"data": "rows.jsonl", "shard": True}
    for setting, wrong in [
        ("shard", {"split": "device", "peer": "localhost:1"}),
        ("optimizer", {"optimizer": "paged_adamw"}),
        ("offload", {"offload": "disk"}),
        ("unpacked_gib", {"quantisation": "nf4", "unpacked_gib": 1}),
    ]:
        with pytest.raises(ConfigError, match=setting):
            read(None, {**plain, **wrong})
    with pytest.raises(ConfigError, match="--each"):
        placement_for_several(read(None, plain))


def test_shard_with_one_process_says_that_it_has_no_effect():
    import torch

    placement = Single(torch.device("cpu"))
    (notice,) = shard_notices(read(None, {"data": "rows.jsonl", "shard": True}), placement)
    assert "no effect" in notice
    assert not shard_notices(read(None, {"data": "rows.jsonl"}), placement)


def test_the_blocks_are_those_of_the_decoder():
    assert list(blocks_of(small.model())) == ["layers.0", "layers.1"]


@pytest.mark.slow
@pytest.mark.parametrize("method", [{"name": "lora", "r": 4}, {"name": "full"}])
def test_a_run_goes_on_with_another_number_of_processes(small_base, tmp_path, method):
    alone, shared = both(small_base, tmp_path, method=method, save_steps=5)
    more, fewer, same_number = (
        {**settings, "output": str(tmp_path / name / "run")}
        for settings, name in ((alone, "more"), (shared, "fewer"), (shared, "same"))
    )
    lorica.train(**more, until=5, show=False)
    train_all([{**fewer, "until": 5}, {**same_number, "until": 5}, shared])
    result = lorica.train(resume=fewer["output"], show=False)
    assert any("began with 2 processes and continues with 1" in n for n in result.notices)
    train_all([{"resume": more["output"]}, {"resume": same_number["output"]}])
    whole = adapter(Path(shared["output"]))
    assert same(adapter(Path(same_number["output"])), whole)
    for run in (fewer, more):
        assert farthest(adapter(Path(run["output"])), whole) < BAR
