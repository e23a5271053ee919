"""LitGPT: lit_model.lora.safetensors, converted from lit_model.pth.lora, beside two YAML files.

Read off litgpt 0.2.0 to 0.5.13 (litgpt/lora.py, litgpt/scripts/convert_lit_checkpoint.py). The rank
and the scale stand in hyperparameters.yaml, the sizes of the heads in model_config.yaml.

    transformer.h.0.attn.qkv.lora_A (N R, I)   lora_B (O, R)     N of q, k, v are adapted
    transformer.h.0.attn.proj, .mlp.fc_1, .mlp.fc_2, .mlp.proj, lm_head    lora_A, lora_B

The parts of lora_B stand one below the other: all rows of q, then of k, then of v, each with its
own R rows of lora_A. Up to 0.5.4 the layer is called attn.attn, and the rows of its weight go by
query group: the heads of q that share one k, then that k, then that v. The update of q and v alone
is laid out accordingly. With all three adapted it is added as it stands: then the update of a head
mixes the parts, and gets all N R components here.

Only models that transformers keeps with separate q, k, v and gate, up, down are read.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lorica.errors import FileError, listed
from lorica.formats.adapter_folder import LITGPT
from lorica.formats.foreign.translation import FolderFiles, Translation
from lorica.formats.peft.types import check_number

SIZES, TRAINING = "model_config.yaml", "hyperparameters.yaml"
FAMILIES = ("LLaMAMLP", "GemmaMLP")
FUSED = ("phi", "falcon")
"""Beginnings of the names of models that transformers lays out otherwise."""
KEY = re.compile(
    r"(?:transformer\.h\.(\d+)\.(attn\.attn|attn\.qkv|attn\.proj|mlp\.fc_1|mlp\.fc_2|mlp\.proj)"
    r"|(lm_head))\.(lora_A|lora_B)"
)
LAYERS = {
    "attn.proj": "self_attn.o_proj",
    "mlp.fc_1": "mlp.gate_proj",
    "mlp.fc_2": "mlp.up_proj",
    "mlp.proj": "mlp.down_proj",
}
QKV = ("q", "k", "v")
FLAGS = {"q": "lora_query", "k": "lora_key", "v": "lora_value"}


def translate(files: FolderFiles) -> Translation:
    """A folder of LitGPT. Raises: FileError for a key or a model that is not understood."""
    for name in (SIZES, TRAINING):
        if not (files.folder / name).is_file():
            raise FileError(
                f"{files.folder} has no {name}, which LitGPT writes beside its weights.",
                fix="copy it from the folder of the checkpoint",
            )
    sizes, training = files.yaml(SIZES), files.yaml(TRAINING)
    _check_family(sizes, files.folder / SIZES)
    path = files.folder / TRAINING
    r = int(check_number(training.get("lora_r"), "lora_r", path, least=1, whole=True))
    alpha = check_number(training.get("lora_alpha"), "lora_alpha", path)
    dropout = check_number(
        training.get("lora_dropout") or 0.0, "lora_dropout", path, least=0, most=0.99
    )
    layers = _layers(files.tensors(LITGPT), files.folder / LITGPT)
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for (block, layer), (a, b) in layers.items():
        if layer in ("attn.attn", "attn.qkv"):
            by_group = layer == "attn.attn"
            parts = _split(a, b, r, sizes, training, by_group, files.folder / LITGPT)
            names = {f"model.layers.{block}.self_attn.{part}_proj": p for part, p in parts.items()}
            pairs |= names
        else:
            site = "lm_head" if layer == "lm_head" else f"model.layers.{block}.{LAYERS[layer]}"
            pairs[site] = _of_rank(a, b, r, layer, files.folder / LITGPT)
    wide = {site: len(a) for site, (a, _) in pairs.items() if len(a) != r}
    base = _base(sizes)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": sorted(pairs),
        "rank_pattern": wide,
        "alpha_pattern": {site: alpha * rank / r for site, rank in wide.items()},
    }
    tensors = {
        f"base_model.model.{site}.{name}.weight": tensor.contiguous()
        for site, pair in pairs.items()
        for name, tensor in zip(("lora_A", "lora_B"), pair, strict=True)
    }
    return Translation("LitGPT", tensors, config)


def _check_family(sizes: Mapping[str, Any], path: Path) -> None:
    """Raises: FileError if transformers lays the model out otherwise."""
    name, mlp = str(sizes.get("name", "")), sizes.get("mlp_class_name")
    if mlp not in FAMILIES or name.lower().startswith(FUSED):
        raise FileError(
            f"{path}: adapters of {name or 'this model'} ({mlp}) are not read: transformers lays "
            "its layers out otherwise.",
            known="models of the shape of Llama, Mistral, Gemma, Qwen and OLMo 2",
            fix="litgpt merge_lora, then litgpt convert_from_litgpt, and load the merged model",
        )


def _layers(
    tensors: Mapping[str, Tensor], path: Path
) -> dict[tuple[str, str], tuple[Tensor, Tensor]]:
    """(block, layer) -> (A, B). Raises: FileError for a name that is not understood."""
    matches = {key: KEY.fullmatch(key.removeprefix("model.")) for key in tensors}
    problems = [key for key, match in matches.items() if match is None]
    halves: dict[tuple[str, str], dict[str, Tensor]] = {}
    for key, match in matches.items():
        if match is not None:
            place = (match[1] or "", match[2] or match[3])
            halves.setdefault(place, {})[match[4]] = tensors[key]
    problems += [f"one half of {' '.join(k)}" for k, own in halves.items() if len(own) < 2]
    if problems or not halves:
        raise FileError(
            f"{path} has tensors that are not those of a LoRA of LitGPT.",
            tensors=listed(problems),
            fix="convert lit_model.pth.lora again; it holds only names with lora_",
        )
    return {place: (own["lora_A"], own["lora_B"]) for place, own in halves.items()}


def _of_rank(a: Tensor, b: Tensor, r: int, layer: str, path: Path) -> tuple[Tensor, Tensor]:
    """Raises: FileError if the pair has another rank than hyperparameters.yaml says."""
    if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == r:
        raise FileError(
            f"{path} has a LoRA of another rank than {TRAINING} says, {r}.",
            layer=f"{layer}: lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)}",
            fix="copy both files from the folder of the checkpoint",
        )
    return a, b


def _split(
    a: Tensor,
    b: Tensor,
    r: int,
    sizes: Mapping[str, Any],
    training: Mapping[str, Any],
    by_group: bool,
    path: Path,
) -> dict[str, tuple[Tensor, Tensor]]:
    """The LoRAs of q, k and v, those that are adapted, from that of the fused layer.

    a (N R, I)   b (O, R). by_group: the rows of the weight go by query group.
    """
    where = path.with_name(SIZES)
    heads, groups, size = (
        int(check_number(sizes.get(key), key, where, least=1, whole=True))
        for key in ("n_head", "n_query_groups", "head_size")
    )
    if heads % groups:
        raise FileError(
            f"{where}: n_head is {heads}, and no multiple of n_query_groups, {groups}.",
            fix="copy it from the folder of the checkpoint",
        )
    rows = {"q": heads * size, "k": groups * size, "v": groups * size}
    adapted = [part for part in QKV if training.get(FLAGS[part])]
    outputs = sum(rows[part] for part in adapted)
    if a.ndim != 2 or len(a) != r * len(adapted) or b.shape != (outputs, r):
        raise FileError(
            f"{path} has a fused layer of other sizes than {SIZES} and {TRAINING} say.",
            tensors=f"lora_A {tuple(a.shape)}, lora_B {tuple(b.shape)}",
            adapted=", ".join(adapted) or "none of q, k, v",
            fix="copy both files from the folder of the checkpoint",
        )
    own_a = dict(zip(adapted, a.split(r), strict=True))
    own_b = dict(zip(adapted, b.split([rows[part] for part in adapted]), strict=True))
    if not by_group or len(adapted) < len(QKV):
        return {part: (own_a[part], own_b[part]) for part in adapted}
    update = torch.block_diag(*own_b.values())  # (O, N R): row i is added to row i of the weight
    by_head = update.view(groups, heads // groups + 2, size, len(a))
    own = {"q": by_head[:, :-2], "k": by_head[:, -2], "v": by_head[:, -1]}
    return {part: (a.clone(), own[part].reshape(rows[part], len(a))) for part in QKV}


def _base(sizes: Mapping[str, Any]) -> str | None:
    """The hub id of the base, where model_config.yaml has one."""
    config = sizes.get("hf_config")
    if not isinstance(config, dict) or not isinstance(config.get("name"), str):
        return None
    return f"{config['org']}/{config['name']}" if config.get("org") else config["name"]
