"""What other libraries print that nobody can act on is not shown, and all else is."""

import subprocess
import sys

LOUD = """
import logging, sys, warnings
from lorica.cli.noise import hush
hush()
log = logging.getLogger("bitsandbytes.cextension")
log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: no module")
log.warning("another matter")
warnings.warn_explicit("of torch", FutureWarning, "torch/x.py", 1, module="torch.x")
warnings.warn_explicit("of the user", FutureWarning, "mine.py", 1, module="mine")
warnings.warn_explicit("a matter", UserWarning, "torch/x.py", 1, module="torch.x")
"""


def test_only_what_is_named_is_left_out():
    done = subprocess.run([sys.executable, "-c", LOUD], capture_output=True, text=True, check=True)
    assert "gemm_4bit" not in done.stderr and "of torch" not in done.stderr
    for kept in ("another matter", "of the user", "a matter"):
        assert kept in done.stderr
