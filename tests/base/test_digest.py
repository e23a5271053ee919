"""Digests in processes that were forked: torch makes its thread pool anew there."""

import subprocess
import sys

import pytest

from tests.marks import at_length

FORKS = """
import os
import sys
import torch
from lorica.base.digest import digests

tensors = {str(i): torch.randn(100_000) for i in range(12)}
torch.set_num_threads(1)
want, failed = digests(tensors, rounded=True), 0
for _ in range(int(sys.argv[1])):
    if not (child := os.fork()):
        code = 1
        try:
            code = int(digests(tensors, rounded=True) != want)
        finally:
            os._exit(code)
    failed += os.waitpid(child, 0)[1] != 0
print(failed)
"""


@pytest.mark.slow
def test_a_forked_process_has_them_too():
    """One in 150 failed where two threads made the pool at once."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(at_length(1000, 600))],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "0", done.stderr[-400:]
