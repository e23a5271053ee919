"""Llamas with random weights, written tensor by tensor: memory holds one tensor at a time."""

import json
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARDS = 4


@dataclass(frozen=True)
class Shape:
    layers: int
    width: int
    mlp: int
    heads: int
    kv_heads: int
    vocabulary: int = 32_000

    def config(self) -> dict[str, Any]:
        """config.json of transformers."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.width,
            "intermediate_size": self.mlp,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": False,
            "eos_token_id": 0,
            "pad_token_id": 1,
            "bos_token_id": None,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of each tensor, in the order of the model."""
        kv = self.width // self.heads * self.kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.width)
        for i in range(self.layers):
            block = f"model.layers.{i}"
            yield f"{block}.self_attn.q_proj.weight", (self.width, self.width)
            yield f"{block}.self_attn.k_proj.weight", (kv, self.width)
            yield f"{block}.self_attn.v_proj.weight", (kv, self.width)
            yield f"{block}.self_attn.o_proj.weight", (self.width, self.width)
            yield f"{block}.mlp.gate_proj.weight", (self.mlp, self.width)
            yield f"{block}.mlp.up_proj.weight", (self.mlp, self.width)
            yield f"{block}.mlp.down_proj.weight", (self.width, self.mlp)
            yield f"{block}.input_layernorm.weight", (self.width,)
            yield f"{block}.post_attention_layernorm.weight", (self.width,)
        yield "model.norm.weight", (self.width,)
        yield "lm_head.weight", (self.vocabulary, self.width)


SHAPES = {
    "1B": Shape(layers=22, width=2048, mlp=5632, heads=32, kv_heads=4),
    "7B": Shape(layers=32, width=4096, mlp=11_008, heads=32, kv_heads=32),
}


def write(shape: Shape, folder: Path, shards: int = SHARDS) -> Path:
    """A base in `folder`, unless it is there: shards in bfloat16, an index, bundled tokenizer."""
    from lorica.base.bundled import FOLDER

    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors, bytes_of = dict(shape.tensors()), _bytes_of
    limit, groups = sum(map(bytes_of, tensors.values())) / shards, [dict[str, tuple[int, ...]]()]
    for name, size in tensors.items():
        if len(groups) < shards and sum(map(bytes_of, groups[-1].values())) >= limit:
            groups.append({})
        groups[-1][name] = size
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, 1):
        file = part / f"model-{number:05}-of-{len(groups):05}.safetensors"
        _write_shard(file, group, seed=number)
        weight_map |= dict.fromkeys(group, file.name)
    total = sum(map(bytes_of, tensors.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    (part / "config.json").write_text(json.dumps(shape.config()))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(FOLDER / name, part / name)
    part.rename(folder)
    return folder


def _write_shard(file: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    import torch

    header, start = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors.items():
        end = start + _bytes_of(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}  # type: ignore[assignment]
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(seed)
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            weight = torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) > 1:
                weight.normal_(0, 0.02, generator=generator)
            out.write(weight.view(torch.uint8).numpy())  # type: ignore[arg-type]


def _bytes_of(shape: tuple[int, ...]) -> int:
    values = 1
    for n in shape:
        values *= n
    return 2 * values
