"""Peak memory is in bytes and never falls."""

import sys

import pytest
import torch

from lorica.core.peak_memory import peak_memory


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not report it")
def test_the_peak_of_a_process_is_in_bytes_and_never_falls():
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(64 << 20, dtype=torch.uint8)
    size = block.nbytes
    del block
    after = peak_memory(torch.device("cpu"))
    assert before is not None
    assert after is not None
    assert size < after < 1 << 40
    assert before <= after
