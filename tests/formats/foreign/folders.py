"""Folders in the layouts of other tools, written from their documentation and not by the reader.

Each writer gets the update of some layers of a small Llama, and writes it as its tool would: the
test computes what the model must give, from the same update, by hand.
"""

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorica.core.draws import drawing

HEADS, GROUPS, SIZE, BLOCKS = 4, 2, 8, 2
IDS = torch.arange(3, 27).view(2, 12)
SHAPES = {  # of the weights (O, I) of tests/small_base.py
    "self_attn.q_proj": (32, 32),
    "self_attn.k_proj": (16, 32),
    "self_attn.v_proj": (16, 32),
    "self_attn.o_proj": (32, 32),
    "mlp.gate_proj": (64, 32),
    "mlp.up_proj": (64, 32),
    "mlp.down_proj": (32, 64),
}


@dataclass(frozen=True)
class Update:
    """scale * b a of one layer: a (R, I), b (O, R); of a DoRA with the magnitude m (O,)."""

    a: Tensor
    b: Tensor
    scale: float
    m: Tensor | None = None

    def weight(self, base: Tensor) -> Tensor:
        weight = base + self.scale * (self.b @ self.a)
        if self.m is None:
            return weight
        return self.m[:, None] * weight / weight.norm(dim=1, keepdim=True)


Updates = dict[str, Update]


def updates(*layers: str, r: int = 4, scale: float = 1.5, dora: bool = False) -> Updates:
    """Random updates of these layers in every block, by the whole name of the layer."""
    own: Updates = {}
    with drawing(7):
        for block in range(BLOCKS):
            for layer in layers:
                rows, columns = SHAPES[layer]
                m = 2 + torch.rand(rows) if dora else None
                a, b = 0.3 * torch.randn(r, columns), 0.3 * torch.randn(rows, r)
                own[f"model.layers.{block}.{layer}"] = Update(a, b, scale, m)
    return own


@torch.no_grad()
def expected(model: Any, own: Mapping[str, Update]) -> Tensor:
    """The logits of a copy of `model` whose weights have the updates added by hand."""
    model = copy.deepcopy(model)
    for name, update in own.items():
        weight = model.get_submodule(name).weight
        weight.copy_(update.weight(weight))
    return model(IDS).logits


def write(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write tensors, JSON and text into `folder`, by the type of the values."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        if name.endswith(".safetensors"):
            tensors = {key: tensor.contiguous() for key, tensor in value.items()}
            save_file(tensors, folder / name)
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / name).write_text(text)
    return folder


def peft_tensors(own: Updates, prefix: str = "base_model.model.", name: str = "") -> dict:
    """PEFT's names. name: the adapter's, with the dot before it, inside of them."""
    tensors = {}
    for layer, update in own.items():
        tensors[f"{prefix}{layer}.lora_A{name}.weight"] = update.a
        tensors[f"{prefix}{layer}.lora_B{name}.weight"] = update.b
        if update.m is not None:
            tensors[f"{prefix}{layer}.lora_magnitude_vector"] = update.m
    return tensors


OLD_CONFIG = {  # as PEFT 0.2 and 0.3 wrote it
    "base_model_name_or_path": "decapoda-research/llama-7b-hf",
    "bias": "none",
    "enable_lora": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "lora_alpha": 6.0,
    "lora_dropout": 0.05,
    "merge_weights": False,
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
QV = ("self_attn.q_proj", "self_attn.v_proj")
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
PEFT_FILES = ("adapter_model.safetensors", "adapter_config.json")


def peft_old(folder: Path) -> Updates:
    """PEFT 0.3, converted from .bin."""
    own = updates(*QV)
    write(folder, dict(zip(PEFT_FILES, (peft_tensors(own), OLD_CONFIG), strict=True)))
    return own


def peft_named(folder: Path) -> Updates:
    """A state dict that was saved without PEFT: no prefix, the adapter's name, wrappers' names."""
    own = updates(*QV)
    tensors = peft_tensors(own, prefix="", name=".default")
    tensors = {key.replace(".self_attn", "._orig_mod.self_attn"): t for key, t in tensors.items()}
    config = {key: value for key, value in OLD_CONFIG.items() if key != "target_modules"}
    write(folder, dict(zip(PEFT_FILES, (tensors, config), strict=True)))
    return own


def checkpoint(folder: Path) -> Updates:
    """A checkpoint of the Trainer (TRL, Axolotl): pickles of its state beside the adapter."""
    own = peft_old(folder)
    write(folder, {"trainer_state.json": {"global_step": 500}, "training_args.bin": "pickle"})
    write(folder, {"optimizer.pt": "pickle", "rng_state.pth": "pickle"})
    return own


def unsloth(folder: Path) -> Updates:
    """Unsloth 2025: a regex over names, a base in 4 bits, its own auto_mapping."""
    own = updates("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj")
    regex = (
        "(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
        "(?:q_proj|o_proj|down_proj).*?)|(?:\\bmodel\\.layers\\.[\\d]{1,}\\.(?:self_attn|attention"
        "|attn|mlp|feed_forward|ffn|dense)\\.(?:(?:q_proj|o_proj|down_proj)))"
    )
    config = {
        **OLD_CONFIG,
        "auto_mapping": {
            "base_model_class": "LlamaForCausalLM",
            "parent_library": "transformers.models.llama.modeling_llama",
            "unsloth_fixed": True,
        },
        "base_model_name_or_path": "unsloth/llama-3-8b-bnb-4bit",
        "target_modules": regex,
        "use_rslora": True,
        "lora_alpha": 3,
        "loftq_config": {},
        "layer_replication": None,
    }
    write(folder, dict(zip(PEFT_FILES, (peft_tensors(own), config), strict=True)))
    return own


def sharded(folder: Path) -> Updates:
    """Two shards and their index."""
    own = updates(*QV)
    shards = {"adapter_model-00001-of-00002.safetensors": {}}
    shards["adapter_model-00002-of-00002.safetensors"] = {}
    weight_map = {}
    for i, (key, tensor) in enumerate(peft_tensors(own).items()):
        name = sorted(shards)[i % 2]
        shards[name][key] = tensor
        weight_map[key] = name
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    files = {"adapter_model.safetensors.index.json": index, "adapter_config.json": OLD_CONFIG}
    write(folder, {**shards, **files})
    return own


MLX_CONFIG = {
    "adapter_path": "adapters",
    "batch_size": 4,
    "fine_tune_type": "lora",
    "iters": 1000,
    "lora_parameters": {"rank": 4, "dropout": 0.0, "scale": 1.5},
    "lr_schedule": None,
    "model": "owner/base",
    "num_layers": 2,
    "train": True,
}


def mlx_tensors(own: Updates) -> dict:
    tensors = {}
    for layer, update in own.items():
        tensors[f"{layer}.lora_a"], tensors[f"{layer}.lora_b"] = update.a.T, update.b.T
        if update.m is not None:
            tensors[f"{layer}.m"] = update.m
    return tensors


def mlx(folder: Path) -> Updates:
    """mlx-lm 0.32, LoRA."""
    own = updates(*QV, "mlp.down_proj")
    write(folder, {"adapters.safetensors": mlx_tensors(own), "adapter_config.json": MLX_CONFIG})
    return own


def mlx_dora(folder: Path) -> Updates:
    """mlx-lm 0.32, DoRA."""
    own = updates(*QV, dora=True)
    config = {**MLX_CONFIG, "fine_tune_type": "dora"}
    write(folder, {"adapters.safetensors": mlx_tensors(own), "adapter_config.json": config})
    return own


MODEL_CONFIG = f"""\
name: tiny-llama
hf_config:
  name: tiny
  org: owner
mlp_class_name: LLaMAMLP
head_size: {SIZE}
n_head: {HEADS}
n_query_groups: {GROUPS}
n_embd: 32
norm_eps: 1.0e-05
"""
HYPERPARAMETERS = """\
checkpoint_dir: checkpoints/owner/tiny
precision: bf16-true
lora_r: 4
lora_alpha: 6
lora_dropout: 0.05
lora_query: {q}
lora_key: {k}
lora_value: true
lora_projection: true
lora_mlp: true
lora_head: false
"""
LIT = {
    "self_attn.o_proj": "attn.proj",
    "mlp.gate_proj": "mlp.fc_1",
    "mlp.up_proj": "mlp.fc_2",
    "mlp.down_proj": "mlp.proj",
}


def lit_tensors(own: Updates, fused: str) -> dict:
    """LitGPT's names: q, k and v one below the other in the layer called `fused`."""
    tensors = {}
    for block in range(BLOCKS):
        layers = {
            name.removeprefix(f"model.layers.{block}."): update
            for name, update in own.items()
            if name.startswith(f"model.layers.{block}.")
        }
        parts = [layers.pop(layer) for layer in QKV if layer in layers]
        tensors[f"transformer.h.{block}.{fused}.lora_A"] = torch.cat([p.a for p in parts])
        tensors[f"transformer.h.{block}.{fused}.lora_B"] = torch.cat([p.b for p in parts])
        for layer, update in layers.items():
            tensors[f"transformer.h.{block}.{LIT[layer]}.lora_A"] = update.a
            tensors[f"transformer.h.{block}.{LIT[layer]}.lora_B"] = update.b
    return tensors


def lit_files(own: Updates, fused: str) -> dict[str, Any]:
    has = {letter: f"model.layers.0.self_attn.{letter}_proj" in own for letter in "qk"}
    return {
        "lit_model.lora.safetensors": lit_tensors(own, fused),
        "model_config.yaml": MODEL_CONFIG,
        "hyperparameters.yaml": HYPERPARAMETERS.format(
            **{k: str(v).lower() for k, v in has.items()}
        ),
    }


def litgpt(folder: Path) -> Updates:
    """LitGPT 0.5.13: q, k, v, the output projection and the MLP."""
    own = updates(*SHAPES)
    write(folder, lit_files(own, "attn.qkv"))
    return own


def litgpt_old(folder: Path) -> Updates:
    """LitGPT 0.4 with q and v alone: its weight goes by query group, its update by part."""
    own = updates(*QV, "mlp.up_proj")
    write(folder, lit_files(own, "attn.attn"))
    return own


TUNE = {
    "self_attn.q_proj": "attn.q_proj",
    "self_attn.k_proj": "attn.k_proj",
    "self_attn.v_proj": "attn.v_proj",
    "self_attn.o_proj": "attn.output_proj",
    "mlp.gate_proj": "mlp.w1",
    "mlp.up_proj": "mlp.w3",
    "mlp.down_proj": "mlp.w2",
}
TUNE_CONFIG = {"r": 4, "lora_alpha": 6, "peft_type": "LORA"}
TUNE_CONFIG |= {"target_modules": ["q_proj", "k_proj", "down_proj"]}


def by_pairs(rows: Tensor) -> Tensor:
    """Rows of q or k as torchtune has them: of each head those that are rotated together."""
    order = [
        head * SIZE + part * SIZE // 2 + i
        for head in range(len(rows) // SIZE)
        for i in range(SIZE // 2)
        for part in range(2)
    ]
    return rows[order]


def tune_tensors(own: Updates, *, permuted: bool = True) -> dict:
    tensors = {}
    for name, update in own.items():
        block, _, layer = name.removeprefix("model.layers.").partition(".")
        key = f"layers.{block}.{TUNE[layer]}"
        turn = by_pairs if permuted and layer in QKV[:2] else lambda rows: rows
        tensors[f"{key}.lora_a.weight"] = update.a
        tensors[f"{key}.lora_b.weight"] = turn(update.b)
        if update.m is not None:
            tensors[f"{key}.magnitude"] = turn(update.m)
    return tensors


def torchtune(folder: Path) -> Updates:
    """torchtune 0.7's own tensors, converted from adapter_0.pt: a DoRA."""
    own = updates("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj", dora=True)
    write(folder, {"adapter_0.safetensors": tune_tensors(own), "adapter_config.json": TUNE_CONFIG})
    return own


def torchtune_export(folder: Path) -> Updates:
    """torchtune 0.7's export in PEFT's names, with the four keys that it writes."""
    own = updates("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj")
    write(folder, dict(zip(PEFT_FILES, (peft_tensors(own), TUNE_CONFIG), strict=True)))
    return own


@dataclass(frozen=True)
class Case:
    """write: into a folder. tool: what `lorica info` calls it. notices: words of each notice but
    the one on the base."""

    write: Callable[[Path], Updates]
    tool: str
    notices: tuple[str, ...] = ()


CASES = {
    "PEFT 0.3": Case(peft_old, "PEFT"),
    "PEFT, a raw state dict": Case(
        peft_named, "PEFT", ("lack 'base_model.model.'", "'default', in them", "no target_modules")
    ),
    "a checkpoint of the Trainer": Case(checkpoint, "PEFT"),
    "Unsloth": Case(unsloth, "PEFT", ("weights in 4 bits",)),
    "shards": Case(sharded, "PEFT, 2 shards"),
    "mlx-lm": Case(mlx, "mlx-lm"),
    "mlx-lm, DoRA": Case(mlx_dora, "mlx-lm"),
    "LitGPT": Case(litgpt, "LitGPT"),
    "LitGPT 0.4": Case(litgpt_old, "LitGPT"),
    "torchtune, DoRA": Case(torchtune, "torchtune, its own tensors"),
    "torchtune, exported": Case(torchtune_export, "torchtune, exported to PEFT's layout"),
}
