"""PEFT's own folders, of every version since 0.3, and those of trainers that save through PEFT.

Read off peft 0.3.0 to 0.21.2 (src/peft/utils/save_and_load.py, src/peft/tuners/lora/config.py).
TRL, Axolotl, Unsloth and Hugging Face's Trainer write the same folder, as checkpoint-<step>.

Names of tensors. PEFT cuts the adapter's name out of its keys (`lora_A.default.weight`) and writes
`base_model.model.` in front. A state dict that another tool saved has the name, lacks the prefix,
or has the names of wrappers in its keys (torch.compile, FSDP, activation checkpointing).

Settings. A key that a version did not know yet has the meaning of its default: use_rslora, use_dora
False. Rank and alpha have no such default: a folder without them does not say its scale.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lorica.errors import FileError, listed
from lorica.formats.adapter_folder import CONFIG
from lorica.formats.foreign import torchtune
from lorica.formats.foreign.translation import Translation
from lorica.formats.peft.layout import HARMLESS
from lorica.formats.peft.types import check_number

PREFIX, LORA = "base_model.model.", re.compile(r"\.lora_(A|B|embedding_A|embedding_B)\b")
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
NAMED = re.compile(
    r"\.(lora_[AB]|lora_embedding_[AB]|lora_E|lora_magnitude_vector|ia3_l|vera_lambda_[bd]"
    r"|modules_to_save|trainable_tokens_delta)\.(?!weight$|bias$)([^.]+)(?=\.|$)"
)
"""A parameter of PEFT's, and the adapter's name behind it."""
DROPPED = ("merge_weights",)
"""Settings of PEFT 0.2 that say how a model was run, and nothing about the adapter."""
FOUR_BITS = "-bnb-4bit"


def translate(
    tensors: dict[str, Tensor], config: dict[str, Any], folder: Path, *, sharded: int = 1
) -> Translation:
    """A folder in PEFT's layout. sharded: the number of its weights files.

    Raises: FileError if the tensors are of several adapters, or a setting is missing.
    """
    notices: list[str] = []
    tensors = _plain_names(tensors, folder, notices)
    config = {key: value for key, value in config.items() if key not in DROPPED}
    _check_kind(config, folder)
    _complete(config, tensors, folder, notices)
    base = str(config.get("base_model_name_or_path") or "")
    if base.endswith(FOUR_BITS):
        notices.append(
            f"the adapter was trained on {base}, weights in 4 bits: on the float base its answers "
            "differ a little; --quantisation nf4 loads a base as in training"
        )
    if torchtune.is_export(config):
        return torchtune.exported(tensors, config, folder, notices)
    tool = f"PEFT, {sharded} shards" if sharded > 1 else "PEFT"
    return Translation(tool, tensors, config, notices)


def _plain_names(
    tensors: Mapping[str, Tensor], folder: Path, notices: list[str]
) -> dict[str, Tensor]:
    """The tensors under the names that PEFT gives them. In place: notices on what was changed."""
    names = {key: WRAPPERS.sub("", key) for key in tensors}
    adapters = sorted({name for key in names.values() for _, name in NAMED.findall(key)})
    if len(adapters) > 1:
        raise FileError(
            f"{folder} has the tensors of several adapters: {listed(adapters)}.",
            fix="save each into a folder of its own: "
            "model.save_pretrained(folder, selected_adapters=[name])",
        )
    names = {key: _without_name(name) for key, name in names.items()}
    if any(map(LORA.search, names.values())) and not any(
        name.startswith("base_model.") for name in names.values()
    ):
        names = {key: f"{PREFIX}{name}" for key, name in names.items()}
        notices.append(f"the names of the tensors lack {PREFIX!r}, which was added")
    if len(set(names.values())) < len(names):
        raise FileError(
            f"{folder} has tensors that are the same one under two names.",
            tensors=listed(sorted(key for key, name in names.items() if key != name)),
            fix="save the adapter with PEFT: model.save_pretrained(folder)",
        )
    if adapters:
        notices.append(
            f"the names of the tensors have the adapter's name, {adapters[0]!r}, in them"
        )
    return {names[key]: tensor for key, tensor in tensors.items()}


def _without_name(key: str) -> str:
    """A key without the adapter's name; a magnitude has no `.weight` in PEFT's files."""
    key = NAMED.sub(r".\1", key)
    return re.sub(r"\.(lora_magnitude_vector|lora_embedding_[AB])\.weight$", r".\1", key)


def _check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Raises: FileError for a LoRA that no layer of today has a place for."""
    enabled, bias = config.get("enable_lora"), config.get("bias", "none")
    problems = []
    if enabled not in HARMLESS:
        problems.append(f"enable_lora {enabled!r} (PEFT 0.2's parts of a fused q, k and v)")
    if bias not in HARMLESS:
        problems.append(f"bias {bias!r} (biases of the base were trained)")
    if problems:
        raise FileError(
            f"{folder}: this PEFT adapter uses what lorica does not read.",
            settings=listed(problems),
            fix="merge it with PEFT, or train it again here",
        )


def _complete(
    config: dict[str, Any], tensors: Mapping[str, Tensor], folder: Path, notices: list[str]
) -> None:
    """Add what the tensors say and the config does not. In place.

    Raises: FileError for a rank, a scale or a kind that cannot be known.
    """
    if config.get("peft_type") != "LORA":
        return
    if absent := [key for key in ("r", "lora_alpha") if config.get(key) is None]:
        raise FileError(
            f"{folder / CONFIG} has no {' and no '.join(absent)}: the scale of the adapter is "
            "not known.",
            fix="write the values of its training into the file; PEFT's defaults are r 8 and "
            "lora_alpha 8",
        )
    check_number(config["lora_alpha"], "lora_alpha", folder / CONFIG)
    magnitudes = [key for key in tensors if key.endswith(".lora_magnitude_vector")]
    if magnitudes and "use_dora" not in config and not torchtune.is_export(config):
        raise FileError(
            f"{folder / CONFIG} does not say use_dora, and the tensors are those of a DoRA.",
            tensors=listed(magnitudes),
            fix='write "use_dora": true into the file',
        )
    if config.get("target_modules") is None and not config.get("target_parameters"):
        sites = {
            key.removeprefix(PREFIX)[: m.start() - len(PREFIX)]
            for key in tensors
            if (m := LORA.search(key)) and key.startswith(PREFIX)
        }
        config["target_modules"] = sorted(sites)
        notices.append(f"{CONFIG} has no target_modules: the {len(sites)} layers of its tensors")
