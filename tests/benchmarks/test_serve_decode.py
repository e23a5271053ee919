"""The benchmark of decoding runs, and compares with the model merged."""

import pytest
import torch

from benchmarks.serve import decode


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")  # of what PEFT calls
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_it_measures_every_side(method):
    case = decode.Case(3, 2, method, peers=method == "lora")
    speeds = decode.measure(case, "T", torch.float32, rounds=1)
    assert speeds["merged"] == 1 and all(speed > 0 for speed in speeds.values())
    peers = {"lorica.mixed", "PEFT adapter_names"} if method == "lora" else set()
    assert speeds.keys() == {"merged", "bank"} | peers
