"""The types of the keys of adapter_config.json, as PEFT writes them.

PEFT's reader coerces: `"use_rslora": "false"` is a non-empty text, and so counts as true there.
Here a value of another type is refused: what it was meant to be is not known.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from lorica.errors import FileError, listed
from lorica.recipe.values import is_valid

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e9)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count: Any = Annotated[int, Field(ge=0, le=2**31)]
Rank = Annotated[int, Field(ge=1, le=2**20)]
Seed: Any = Annotated[int, Field(ge=0, lt=2**62)]
Names = list[str] | str | None
LEAST = 1e-9
"""Of a scale: an adapter with a smaller one does nothing."""

TYPES: dict[str, Any] = {
    **dict.fromkeys(
        (
            "fan_in_fan_out",
            "inference_mode",
            "use_dora",
            "use_rslora",
            "lora_bias",
            "save_projection",
            "init_ia3_weights",
            "prefix_projection",
        ),
        bool,
    ),
    **dict.fromkeys(
        ("peft_type", "task_type", "base_model_name_or_path", "revision", "peft_version"),
        str | None,
    ),
    **dict.fromkeys(
        (
            "target_modules",
            "exclude_modules",
            "layers_pattern",
            "modules_to_save",
            "feedforward_modules",
        ),
        Names,
    ),
    **dict.fromkeys(("r", "init_r", "target_r"), Rank),
    **dict.fromkeys(("tinit", "tfinal", "deltaT"), Count),
    **dict.fromkeys(
        (
            "num_virtual_tokens",
            "token_dim",
            "num_transformer_submodules",
            "num_attention_heads",
            "num_layers",
            "encoder_hidden_size",
            "total_step",
            "encoder_num_layers",
        ),
        Count | None,
    ),
    **dict.fromkeys(("lora_dropout", "vera_dropout"), Share),
    **dict.fromkeys(("beta1", "beta2", "orth_reg_weight", "d_initial", "encoder_dropout"), Number),
    "lora_alpha": Number,
    "projection_prng_key": Seed | None,
    "init_lora_weights": bool | str,
    "target_parameters": list[str] | None,
    "layers_to_transform": list[Count] | Count | None,
    "trainable_token_indices": list[Count] | dict[str, list[Count]] | None,
    "alpha_pattern": dict[str, Positive] | None,
    "rank_pattern": dict[str, Rank | list[bool]] | None,
}


def check_types(config: Mapping[str, Any], source: str) -> None:
    """Raises: FileError with every key that has a value of another type than PEFT writes."""
    wrong = [
        f"{key} is {value!r:.80}"
        for key, value in config.items()
        if key in TYPES and not is_valid(TYPES[key], value)
    ]
    if wrong:
        raise FileError(
            f"{source}: {len(wrong)} values of adapter_config.json are not of their type.",
            settings=listed(wrong, 8),
            fix="copy the folder anew; true, false and numbers stand without quotes",
        )


def check_number(
    value: object,
    key: str,
    path: Path,
    *,
    least: float = LEAST,
    most: float = 1e9,
    whole: bool = False,
) -> float:
    """A number of a foreign config. Raises: FileError if it is missing, or out of bounds."""
    fits = type(value) is int or (type(value) is float and not whole)
    if not fits or not least <= value <= most:  # type: ignore[operator]
        bound = "above 0" if least == LEAST else f"of at least {least:g}"
        raise FileError(
            f"{path}: {key} is {value!r:.80}; it must be a number {bound}.",
            fix="write the value of its training into the file",
        )
    return float(value)  # type: ignore[arg-type]
