"""Mapped weights leave the memory of the process after each layer, and are read again."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorica.base.digest import digests
from lorica.base.offload import released_after_use

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
WIDTH, LAYERS = 512, 8


def resident(file: Path) -> int:
    """Bytes of `file` that are in this process's memory."""
    maps = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text())
    own = [m for m in maps if m.partition("\n")[0].endswith(str(file))]
    return sum(1024 * int(re.findall(r"^Rss: +(\d+) kB", m, re.M)[0]) for m in own)


@pytest.fixture
def mapped(tmp_path) -> tuple[nn.Module, Path]:
    """A model whose weights are mapped from a file."""
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(LAYERS)))
    file = tmp_path / "model.safetensors"
    save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file), assign=True)
    return model, file


def test_weights_are_released_layer_by_layer(mapped):
    model, file = mapped
    x, layer_bytes = torch.ones(1, WIDTH), 4 * WIDTH**2
    seen = []
    with released_after_use(model), torch.no_grad():
        for layer in model.modules():
            layer.register_forward_hook(lambda *_: seen.append(resident(file)))
        released = model(x)
    assert max(seen) < 2 * layer_bytes, "of 8 layers one at a time is in memory"
    with torch.no_grad():
        assert torch.equal(model(x), released)
    assert resident(file) > (LAYERS - 1) * layer_bytes, "outside of the block nothing is released"


def test_hashing_releases_what_it_has_read(mapped):
    model, file = mapped
    first = digests(dict(model.named_parameters()), rounded=True)
    assert resident(file) < 4 * WIDTH**2
    assert first == digests({k: p.clone() for k, p in model.named_parameters()}, rounded=True)
