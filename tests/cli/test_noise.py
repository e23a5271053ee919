"""Named messages of other libraries are hidden, and all others are printed."""

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


def test_only_named_messages_are_hidden():
    process = subprocess.run(
        [sys.executable, "-c", LOUD], capture_output=True, text=True, check=True
    )
    assert "gemm_4bit" not in process.stderr and "of torch" not in process.stderr
    for message in ("another matter", "of the user", "a matter"):
        assert message in process.stderr
