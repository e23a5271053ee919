"""The large shapes are bases in shards, and the page says what was not done."""

import torch

from benchmarks.large import page
from benchmarks.large.shapes import SHAPES, Shape, write
from lorica.base.load import load


def test_a_shape_is_a_base_in_shards(tmp_path):
    shape = Shape(layers=3, width=64, mlp=96, heads=4, kv_heads=2, vocabulary=2048)
    folder = write(shape, tmp_path / "base")
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = load(str(folder), dtype="auto").model
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert dict(shape.tensors()) == {n: tuple(p.shape) for n, p in model.named_parameters()}


def test_the_shapes_have_the_sizes_of_their_names():
    for name, low, high in (("1B", 1.0e9, 1.2e9), ("7B", 6.5e9, 7.0e9)):
        sizes = (torch.Size(size).numel() for _, size in SHAPES[name].tensors())
        assert low < sum(sizes) < high


def test_a_side_without_a_step_has_no_figure_and_says_why():
    about = {"base": 2**30, "shard": 2**28, "shards": 4, "machine": "a machine"}
    done = {"load_seconds": 5.0, "load_peak": 2**30, "failed": "not done after 60 s"}
    lines = page.section("1B", {"PEFT nf4": {**done, **about}, "lorica train nf4": about})
    assert "| PEFT nf4 | 5 | 1.00 | - | - |" in lines
    assert "*PEFT nf4: not done after 60 s.*" in lines
    assert "| `lorica train nf4` | - |" in lines
