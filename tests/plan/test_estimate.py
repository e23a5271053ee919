"""A whole estimate, and the change that makes a run fit."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from lorica.errors import ConfigError
from lorica.plan.devices import device_named
from lorica.plan.estimate import START, estimate
from lorica.plan.fit import all_changes, change_that_fits, recipe, single_changes
from tests.plan.planned import settings, write_base, write_rows


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", 40)


@pytest.fixture
def llama(tmp_path):
    return write_base(tmp_path / "llama")


def test_steps_and_epochs(rows):
    planned = estimate(settings(rows, gradient_accumulation_steps=2), device_named("24GiB"))
    assert (planned.rows, planned.rows_per_step, planned.steps) == (38, 16, 8)  # 3 epochs
    planned = estimate(settings(rows, max_steps=19), device_named("24GiB"))
    assert planned.steps == 19 and planned.epochs == 4
    assert planned.step is None and planned.run is None  # the speed of 24GiB is not known
    json.dumps(planned.as_dict())


def test_time_is_that_of_the_steps_and_two_evaluations(rows, llama):
    some, more = (
        estimate(settings(rows, llama, max_steps=n, dtype="bfloat16"), device_named("h100"))
        for n in (100, 200)
    )
    assert more.run.expected - some.run.expected == pytest.approx(
        100 * more.step.expected, rel=1e-3
    )
    assert some.run.expected > 100 * some.step.expected
    assert some.run.low < some.run.expected < some.run.high


def test_a_run_has_the_start_of_its_command(rows):
    """It is most of a short run, as of 30 steps on a base of 260,000 parameters."""
    config = settings(rows, max_steps=1)
    for device in ("cpu", "h100"):
        run = estimate(config, device_named(device)).run
        assert run.low > START[device_named(device).kind].low
        assert run.high > START[device_named(device).kind].high


def test_other_programs_on_this_machine_widen_the_range(rows, monkeypatch):
    cpu, config = replace(device_named("cpu"), threads=1, processors=2), settings(rows)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0.0, 0.0))
    alone = estimate(config, cpu)
    assert not any("other programs" in notice for notice in alone.notices)
    monkeypatch.setattr(os, "getloadavg", lambda: (7.0, 0.0, 0.0))
    shared = estimate(config, cpu)
    assert any("up to 4.0 times as long" in notice for notice in shared.notices)
    assert shared.step.high == pytest.approx(4 * alone.step.high)
    assert shared.step.expected == alone.step.expected


def test_launches_that_decide_are_noted(rows, llama):
    config = settings(rows, llama, dtype="bfloat16", micro_batch_size=1)
    fast = [estimate(config, device_named(card)) for card in ("a100-80", "h100")]
    assert fast[0].step.expected == pytest.approx(fast[1].step.expected, rel=0.02)
    for planned in fast:
        assert any("launch its kernels" in notice for notice in planned.notices)
    slow = estimate(config, device_named("t4"))
    assert not any("launch its kernels" in notice for notice in slow.notices)


def card(memory):
    return replace(device_named("24GiB"), memory_bytes=memory)


def test_the_order_of_the_changes(rows, llama):
    config = settings(rows, llama, micro_batch_size=6, **{"method.r": 4})
    assert [change.settings for change in single_changes(config, card(1))] == [
        {"micro_batch_size": 3, "gradient_accumulation_steps": 2},
        {"micro_batch_size": 1, "gradient_accumulation_steps": 6},
        {"gradient_checkpointing": True},
        {"quantisation": "nf4"},
        {"method": {"r": 2}},
        {"method": {"r": 1}},
    ]


def test_a_smaller_micro_batch_comes_first(rows, llama):
    config = settings(rows, llama, dtype="bfloat16", micro_batch_size=32)
    needed = estimate(config, card(1)).memory.total
    assert estimate(config, card(needed)).fits
    first = change_that_fits(config, card(needed - 1))
    assert first.settings == {"micro_batch_size": 16, "gradient_accumulation_steps": 2}
    assert first.estimate.fits
    quarter = estimate(settings(rows, llama, dtype="bfloat16", micro_batch_size=8), card(1))
    assert change_that_fits(config, card(quarter.memory.total)).settings["micro_batch_size"] == 8


def test_then_checkpointing_then_nf4_then_a_lower_rank(rows, llama):
    given = {"dtype": "bfloat16", "micro_batch_size": 1, "method.r": 256}
    changes = [
        {"gradient_checkpointing": True},
        {"quantisation": "nf4"},
        {"method": {"r": 128}},
    ]
    for change in changes:
        config = settings(rows, llama, **given)
        needed = estimate(config, card(1)).memory.total
        assert change_that_fits(config, card(needed - 1)).settings == change
        given |= change if "method" not in change else {}


def test_no_single_change_fits(rows, llama):
    config = settings(rows, llama, micro_batch_size=64)
    assert change_that_fits(config, device_named("4GiB")) is None
    together = all_changes(config, device_named("4GiB"))
    assert together.config.micro_batch_size == 1 and together.config.quantisation == "nf4"
    assert together.estimate.memory.total < estimate(config, device_named("4GiB")).memory.total / 4


def test_full_fine_tuning_is_never_quantised(rows, llama):
    config = settings(rows, llama, method="full", micro_batch_size=2)
    changes = [c.settings for c in single_changes(config, device_named("4GiB"))]
    assert changes == [
        {"micro_batch_size": 1, "gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True},
    ]


def test_the_recipe_with_the_change_reads_back(rows, llama, tmp_path):
    config = settings(rows, llama, **{"micro_batch_size": 64, "method": "dora", "method.r": 4})
    change = change_that_fits(config, device_named("30GiB"))
    text = recipe(change.config, change.settings)
    (tmp_path / "fits.yaml").write_text(text)
    again = read_recipe(tmp_path / "fits.yaml")
    assert again.micro_batch_size < 64
    assert again.micro_batch_size * again.gradient_accumulation_steps == 64
    assert again.method == config.method
    assert "learning_rate" not in text  # what was not given stays out


def read_recipe(path):
    from lorica.recipe.method_settings import method_from_source
    from lorica.training.config import read

    return read(path, check_method=method_from_source)


def test_neither_torch_nor_transformers_is_imported(rows):
    code = (
        "import sys\nfrom lorica import cli\n"
        f"status = cli.run(['plan', '--base', 'bundled', '--data', {rows!r}, '--device', '1GiB',"
        " '--micro_batch_size', '64', '--json'])\n"
        "heavy = {'torch', 'transformers', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "assert status == 0 and not heavy, (status, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"]


def test_the_dtype_of_the_files_is_planned_for_and_reported(tmp_path, capsys):
    from lorica import cli

    rows = write_rows(tmp_path / "rows.jsonl")
    reports = []
    for dtype in ("auto", "bfloat16"):
        assert cli.run(["plan", "--base", "bundled", "--data", rows, "--dtype", dtype]) == 0
        lines = capsys.readouterr().out.splitlines()
        reports.append([line for line in lines if "time" not in line])
    assert reports[0] == reports[1]
    assert any("in bfloat16" in line for line in reports[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"offload": "cpu"}, "no accelerator"),
        ({"offload": "disk", "dtype": "float32"}, "are in bfloat16"),
    ],
)
def test_an_offload_that_train_refuses_is_refused(rows, options, words):
    device = replace(device_named("24GiB"), kind="cpu")
    with pytest.raises(ConfigError, match=words):
        estimate(settings(rows, **options), device)
    assert estimate(settings(rows, offload="disk", dtype="bfloat16"), device)


def test_an_offload_of_a_base_that_is_not_here_is_planned(rows, llama):
    device = replace(device_named("24GiB"), kind="cpu")
    assert estimate(settings(rows, llama, offload="disk", max_steps=1), device)
    assert estimate(settings(rows, offload="cpu", max_steps=1), device_named("h100"))
