"""Two processes give the adapter of one; signals end a run cleanly."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import lorica
from tests.training.launch import train_all
from tests.training.rows import ROUNDING, adapter, farthest, same, settings

SCRIPT = """
import json, sys, torch
torch.set_num_threads(1)
import lorica
from lorica.errors import Stopped
try:
    lorica.train(**json.loads(sys.argv[1]))
except Stopped as stop:
    print(stop, file=sys.stderr)
    sys.exit(stop.exit_code)
"""


def script(folder: Path) -> Path:
    path = folder / "script.py"
    path.write_text(SCRIPT)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("blocks_wait", [False, True])
def test_two_processes_give_the_adapter_of_one(small_base, tmp_path, blocks_wait):
    """blocks_wait: as on an accelerator, an offloaded block is copied for each of its passes."""
    cases = [{"method": "lora", "offload": "disk"}]
    if not blocks_wait:
        cases += [{"method": "lora"}, {"method": "full"}, {"method": "aflora"}]
    pairs = []
    for i, case in enumerate(cases):
        changed = {"learning_rate": 2e-4, "max_steps": 4, "eval_steps": 2, **case}
        alone = settings(
            small_base, tmp_path / f"{i}a", micro_batch_size=4, gradient_accumulation_steps=2
        )
        shared = settings(
            small_base, tmp_path / f"{i}b", micro_batch_size=2, gradient_accumulation_steps=2
        )
        pairs.append(({**alone, **changed}, {**shared, **changed}))
    train_all(
        [shared for _, shared in pairs], **({"LORICA_BLOCKS_WAIT": "1"} if blocks_wait else {})
    )
    for case, (alone, shared) in zip(cases, pairs, strict=True):
        whole = lorica.train(**{**alone, "offload": None}, show=False)
        assert farthest(adapter(whole.folder), adapter(Path(shared["output"]))) < ROUNDING, case


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_says_how_to_go_on(small_base, tmp_path, number):
    whole = lorica.train(**settings(small_base, tmp_path / "a", max_steps=60), show=False)
    config = settings(small_base, tmp_path / "b", max_steps=60)
    process = subprocess.Popen(
        [sys.executable, str(script(tmp_path)), json.dumps(config)],
        stderr=subprocess.PIPE,
        text=True,
    )
    log = Path(config["output"]) / "events.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (log.is_file() and '"step": 3,' in log.read_text()):
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 128 + number, stderr[-2000:]
    assert f"lorica train --resume {config['output']}" in stderr
    assert "Traceback" not in stderr
    result = lorica.train(resume=config["output"], show=False)
    assert same(adapter(whole.folder), adapter(result.folder))
