"""torchtune: its export in PEFT's layout, and its own tensors, converted from .pt.

Read off torchtune 0.7.0 (torchtune/models/convert_weights.py, training/checkpointing). The folder
epoch_<n> has adapter_config.json with r, lora_alpha, target_modules and peft_type alone, the
tensors in PEFT's names (adapter_model.safetensors), and in torchtune's own (adapter_model.pt; in
older versions adapter_<n>.pt):

    layers.0.attn.q_proj.lora_a.weight (R, I)   .lora_b.weight (O, R)   .magnitude (O,)

torchtune rotates neighbouring pairs of a head in Llama, Mistral and Gemma, and the two halves of a
head in Qwen, as transformers does. So it permutes the rows of q and k when it converts the former.
Its export permutes the rows of lora_B for every model, and never those of the magnitudes: for Qwen,
and for DoRA on q or k, the export is not what was trained, and is refused.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lorica.base.model_view import config_of
from lorica.errors import FileError, listed
from lorica.formats.adapter_folder import CONFIG
from lorica.formats.foreign.translation import Translation
from lorica.formats.peft.lora import LoraLayout
from lorica.formats.peft.types import check_number

KEY = re.compile(
    r"(?:layers\.(\d+)\.(attn|mlp)\.)?(\w+)\.(lora_a\.weight|lora_b\.weight|magnitude)"
)
LAYERS = {
    ("attn", "q_proj"): "self_attn.q_proj",
    ("attn", "k_proj"): "self_attn.k_proj",
    ("attn", "v_proj"): "self_attn.v_proj",
    ("attn", "output_proj"): "self_attn.o_proj",
    ("mlp", "w1"): "mlp.gate_proj",
    ("mlp", "w2"): "mlp.down_proj",
    ("mlp", "w3"): "mlp.up_proj",
}
PARTS = {
    "lora_a.weight": "lora_A.weight",
    "lora_b.weight": "lora_B.weight",
    "magnitude": "lora_magnitude_vector",
}
EXPORTED = {"r", "lora_alpha", "target_modules", "peft_type", "base_model_name_or_path"}
"""The keys of adapter_config.json of an export; PEFT writes many more."""
PERMUTED = ("llama", "mistral", "gemma", "gemma2")
"""model_type of the bases whose q and k torchtune permutes."""
PLAIN = ("qwen2", "qwen3")
Q_OR_K = re.compile(r"\.(q|k)_proj\.(lora_B\.weight|lora_magnitude_vector)$")


class OwnLayout(LoraLayout):
    """Rows of q and k in torchtune's order."""

    def read(
        self,
        model: nn.Module,
        name: str,
        file: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str,
    ) -> dict[str, Tensor]:
        kind = _kind_of(model, (*PERMUTED, *PLAIN), source)
        if kind in PERMUTED and any(map(Q_OR_K.search, file)):
            size = _head_size(model)
            file = {k: _by_halves(t, size) if Q_OR_K.search(k) else t for k, t in file.items()}
        return super().read(model, name, file, config, source)


class ExportedLayout(LoraLayout):
    """Rows of q and k in transformers' order, where torchtune exports them right."""

    def read(
        self,
        model: nn.Module,
        name: str,
        file: Mapping[str, Tensor],
        config: Mapping[str, Any],
        source: str,
    ) -> dict[str, Tensor]:
        if any(map(Q_OR_K.search, file)):
            _kind_of(model, PERMUTED, source)
        return super().read(model, name, file, config, source)


def has_own_names(names: Iterable[str]) -> bool:
    """Whether these names of tensors are torchtune's own."""
    return any(".lora_a." in name for name in names)


def is_export(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is one that torchtune wrote."""
    return {"r", "lora_alpha", "target_modules", "peft_type"} <= config.keys() <= EXPORTED


def translate(
    tensors: Mapping[str, Tensor], config: Mapping[str, Any], weights: Path
) -> Translation:
    """A folder with torchtune's own tensors. Raises: FileError for a name that is not understood,
    or without a rank and an alpha."""
    if absent := [key for key in ("r", "lora_alpha") if config.get(key) is None]:
        raise FileError(
            f"{weights.parent / CONFIG} has no {' and no '.join(absent)}: the scale is not known.",
            fix="write lora_rank (as r) and lora_alpha of the training's recipe into the file",
        )
    check_number(config["lora_alpha"], "lora_alpha", weights.parent / CONFIG)
    if unknown := sorted(set(config) - EXPORTED):
        raise _not_read(weights, (f"{key} in {CONFIG}" for key in unknown))
    names = {key: _peft_name(key) for key in tensors}
    if wrong := [key for key, name in names.items() if name is None]:
        raise _not_read(weights, wrong)
    own = {f"base_model.model.{names[key]}": tensor for key, tensor in tensors.items()}
    sites = {key.removeprefix("base_model.model.").partition(".lora_")[0] for key in own}
    settings = {
        **config,
        "peft_type": "LORA",
        "target_modules": sorted(sites),
        "use_dora": any(key.endswith(".lora_magnitude_vector") for key in own),
    }
    return Translation("torchtune, its own tensors", own, settings, layout=OwnLayout())


def exported(
    tensors: dict[str, Tensor], config: dict[str, Any], folder: Path, notices: list[str]
) -> Translation:
    """A folder that torchtune exported to PEFT's layout. Raises: FileError for a DoRA on q or k."""
    magnitudes = [key for key in tensors if key.endswith(".lora_magnitude_vector")]
    if wrong := [key for key in magnitudes if Q_OR_K.search(key)]:
        raise FileError(
            f"{folder}: torchtune exports the magnitudes of q and k in another order of rows than "
            "their lora_B.",
            tensors=listed(wrong),
            fix=_CONVERT,
        )
    config = {**config, "use_dora": bool(magnitudes)}
    tool = "torchtune, exported to PEFT's layout"
    return Translation(tool, tensors, config, notices, ExportedLayout())


_CONVERT = (
    "convert adapter_model.pt, which is as it was trained, and put it in the place of "
    "adapter_model.safetensors: s.save_file(torch.load('adapter_model.pt', weights_only=True), "
    "'adapter_model.safetensors'), with safetensors.torch as s"
)


def _peft_name(key: str) -> str | None:
    match = KEY.fullmatch(key)
    if match is None:
        return None
    block, kind, layer, part = match.groups()
    if block is None:
        return f"lm_head.{PARTS[part]}" if layer == "output" else None
    name = LAYERS.get((kind, layer))
    return None if name is None else f"model.layers.{block}.{name}.{PARTS[part]}"


def _not_read(weights: Path, keys: Iterable[str]) -> FileError:
    return FileError(
        f"{weights} has torchtune's names, and some that lorica does not read.",
        keys=listed(keys),
        fix="merge it with torchtune, and load the merged model",
    )


def _kind_of(model: nn.Module, known: Collection[str], source: str) -> str:
    """The model_type. Raises: FileError if torchtune's order of rows is not known for it."""
    kind = str(getattr(config_of(model), "model_type", ""))
    if kind in known:
        return kind
    if kind in PLAIN:
        raise FileError(
            f"{source}: torchtune's export permutes the rows of q and k for every model, and "
            f"{kind} must have them as they are.",
            fix=f'{_CONVERT}; if another tool wrote the folder, add "task_type": "CAUSAL_LM" to '
            f"{CONFIG}",
        )
    raise FileError(
        f"{source}: the order of torchtune's rows of q and k is not known for a {kind or 'plain'} "
        "model.",
        known=listed(known, 8),
        fix="merge it with torchtune, and load the merged model",
    )


def _head_size(model: nn.Module) -> int:
    """The outputs of one head of q or k."""
    config: Any = config_of(model)
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _by_halves(rows: Tensor, size: int) -> Tensor:
    """Rows (O, ...) of pairs x0 y0 x1 y1 in each head as x0 x1 ... y0 y1 ...; size: of a head.

    Rows that are no heads of this size come back as they are: they do not fit the base either.
    """
    if rows.ndim == 0 or len(rows) % size:
        return rows
    heads = rows.view(-1, size // 2, 2, *rows.shape[1:])
    return heads.transpose(1, 2).reshape(rows.shape)
