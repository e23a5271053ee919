"""Two machines that meet at a rendezvous give the adapter of one; here both are this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

import lorica
from tests.training.launch import environment, free_port
from tests.training.rows import adapter, farthest, settings
from tests.training.test_sharded import BAR


@pytest.mark.slow
def test_two_nodes_give_the_adapter_of_one(small_base, tmp_path):
    changed = {"learning_rate": 2e-4, "max_steps": 4, "eval_steps": 2}
    alone = settings(small_base, tmp_path / "a", **changed)
    recipe = settings(small_base, tmp_path / "b", **changed)
    words = ["--base", str(small_base), "--data.path", recipe["data"]["path"]]
    words += ["--data.validation", "0.1", "--method.r", "4", "--learning_rate", "2e-4"]
    words += ["--max_steps", "4", "--eval_steps", "2", "--micro_batch_size", "4"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=run"]
    train = ["-m", "lorica", "train", *words, "--shard", "true", "--output", recipe["output"]]
    nodes = [
        subprocess.Popen(
            [*command, f"--local-addr={address}", *train],
            env=environment(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for address in ("127.0.0.1", "127.0.0.2")
    ]
    try:
        for node in nodes:
            _, stderr = node.communicate(timeout=240)
            assert node.returncode == 0, stderr[-3000:]
    finally:
        for node in nodes:
            node.kill()
    result = lorica.train(**alone, show=False)
    assert farthest(adapter(result.folder), adapter(Path(recipe["output"]))) < BAR
