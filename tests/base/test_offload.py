"""Mapped weights leave the memory of the process after each layer, and are read again."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorica.base.digest import digests
from lorica.base.fingerprint import fingerprint
from lorica.base.little_memory import PIECE, in_little_memory
from lorica.base.load import load
from lorica.base.mapped_memory import is_mapped, mapped_weights, release_pages
from lorica.base.offload import released_after_use
from lorica.base.offload_blocks import BlockOffload
from lorica.base.samples import sampled
from lorica.core.site import blocks_of
from lorica.errors import BaseError, ConfigError
from tests import small_base
from tests.training.rows import tiny_base

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


def test_weights_are_released_after_the_backward_pass_of_their_layer(mapped):
    model, file = mapped
    model.requires_grad_(False)
    x = torch.ones(1, WIDTH, requires_grad=True)
    plain = torch.autograd.grad(model(x).sum(), x)[0]
    seen = []
    with released_after_use(model):
        y = model(x)
        for layer in model:
            layer.register_full_backward_hook(lambda *_: seen.append(resident(file)))
        model(x).sum().backward()
    assert len(seen) == LAYERS
    assert max(seen) < 3 * 4 * WIDTH**2
    assert resident(file) < 4 * WIDTH**2
    assert x.grad is not None
    assert torch.equal(x.grad, plain)
    assert y.requires_grad


def test_a_large_layer_is_tried_a_piece_at_a_time(tmp_path, monkeypatch):
    """Its values are those of the whole layer, and its own forward is put back."""
    file, rows = tmp_path / "model.safetensors", 4 * PIECE // (4 * WIDTH) + 3
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, rows))
    save_file(model.state_dict(), file)
    model.load_state_dict(load_file(file), assign=True)
    large: Any = model[1]
    seen = []
    large.forward = own = lambda x: nn.functional.linear(x, large.weight, large.bias)

    def watched(*arguments) -> None:
        seen.append(resident(file))
        release_pages(*arguments)

    monkeypatch.setattr("lorica.base.little_memory.release_pages", watched)
    x = torch.randn(2, 3, WIDTH, generator=torch.Generator().manual_seed(0))
    with in_little_memory(model), torch.no_grad():
        y = model(x)
    assert len(seen) == 5, "four whole pieces and the rest"
    assert max(seen) < 2 * PIECE
    assert large.forward is own and "forward" not in vars(model[0])
    with torch.no_grad():
        torch.testing.assert_close(y, model(x))


def test_hashing_releases_what_it_has_read(mapped):
    model, file = mapped
    first = digests(dict(model.named_parameters()), rounded=True)
    assert resident(file) < 4 * WIDTH**2
    assert first == digests({k: p.clone() for k, p in model.named_parameters()}, rounded=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A small base in float32."""
    return small_base.write(tmp_path_factory.mktemp("base"))


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there, it can be")
@pytest.mark.parametrize(
    ("options", "words", "fix"),
    [
        ({"offload": "cpu"}, "no accelerator", "--offload disk"),
        ({"offload": "tape"}, "'tape'", ""),
        ({"offload": "disk", "dtype": "bfloat16"}, "are in float32", "--dtype auto"),
        ({"offload": "disk", "quantisation": "int8"}, "quantised as int8", "leave one"),
    ],
)
def test_an_offload_that_cannot_be_is_refused(base, options, words, fix):
    with pytest.raises(ConfigError, match=words) as error:
        load(str(base), **options)
    assert fix in str(error.value.fix or "")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="weights are on the accelerator")
def test_a_fingerprint_leaves_nothing_of_the_files_in_memory(tmp_path, monkeypatch):
    """Also while it samples: the system reads pages around each value that is asked for."""
    folder = tiny_base(tmp_path / "base", hidden_size=256, num_hidden_layers=8)
    loaded = load(str(folder), dtype="auto", offload="disk")
    file = folder / "model.safetensors"
    ignored = loaded.model._ddp_params_and_buffers_to_ignore
    assert set(ignored) == {name for name, _ in loaded.model.named_parameters()}  # type: ignore[arg-type]
    seen = []

    def watched(tensor: torch.Tensor) -> bytes:
        seen.append(resident(file))
        return sampled(tensor)

    monkeypatch.setattr("lorica.base.fingerprint.sampled", watched)
    fingerprint(loaded.model, hashing="exact")
    assert len(seen) > 8
    assert max(*seen, resident(file)) < file.stat().st_size / 3


@pytest.mark.skipif(torch.accelerator.is_available(), reason="weights are on the accelerator")
def test_a_system_that_maps_no_files_has_no_offload(base, monkeypatch):
    monkeypatch.setattr("lorica.base.offload.mapped_weights", list)
    with pytest.raises(BaseError, match="not mapped"):
        load(str(base), offload="disk")


@pytest.mark.parametrize("checkpointing", [False, True])
def test_blocks_are_brought_and_let_go(checkpointing):
    """Same bits as resident; two blocks at most are there; none is left there."""
    model = small_base.model().requires_grad_(False).train()
    embeds = model.get_input_embeddings()(torch.arange(40, 52).unsqueeze(0)).requires_grad_()
    if checkpointing:
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def gradient() -> torch.Tensor:
        loss = model(inputs_embeds=embeds, use_cache=False).logits.square().sum()
        return torch.autograd.grad(loss, embeds)[0]

    plain = gradient()
    own = BlockOffload(model, torch.device("cpu"), pinned=False)
    own.begin()
    most, bring = [], own._bring

    def count(i: int) -> None:
        bring(i)
        most.append(len(own.copies))
        assert all(p.data_ptr() != kept.data_ptr() for p, kept in own.kept[i])

    own._bring = count  # type: ignore[method-assign]
    for _ in range(2):
        assert torch.equal(gradient(), plain)
    assert len(most) == 2 * 2 * len(blocks_of(model))
    assert max(most) <= 2
    assert own.copies == {}
    assert all(p.data_ptr() == kept.data_ptr() for pairs in own.kept for p, kept in pairs)


def test_an_abandoned_backward_pass_leaves_no_block_there():
    model = small_base.model().requires_grad_(False)
    own = BlockOffload(model, torch.device("cpu"), pinned=False)
    own.begin()
    with torch.no_grad():
        first = model(torch.arange(5).unsqueeze(0)).logits
        assert torch.equal(model(torch.arange(5).unsqueeze(0)).logits, first)
    assert own.copies == {}


def test_what_was_written_to_a_mapped_weight_is_kept(small_base):
    """Its pages are copies, which releasing would lose."""
    model = load(str(small_base)).model
    ranges = mapped_weights()
    weight = max(model.parameters(), key=lambda p: p.numel()).data
    assert is_mapped(weight, ranges)
    weight[len(weight) // 2] += 1
    want = weight.clone()
    release_pages(weight, ranges)
    assert torch.equal(weight, want)
    other = min((p.data for p in model.parameters() if p.ndim > 1), key=lambda p: p.numel())
    before = other.clone()
    release_pages(other, ranges)
    assert torch.equal(other, before)
