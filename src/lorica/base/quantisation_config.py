"""How a checkpoint is quantised, by the quantization_config of its config.json; without torch."""

from enum import Enum
from typing import Any

from lorica.errors import BaseError


def quantisation_of(settings: Any) -> tuple[str | None, bool]:
    """(quantisation, double quantisation) by a transformers quantization_config."""
    if settings is None:
        return None, False
    fields = settings if isinstance(settings, dict) else settings.to_dict()
    if fields.get("load_in_8bit"):
        return "int8", False
    if fields.get("load_in_4bit"):
        double = bool(fields.get("bnb_4bit_use_double_quant"))
        return str(fields.get("bnb_4bit_quant_type", "fp4")), double
    match fields.get("quant_method") or "unknown":
        case Enum(value=method) | method:
            return str(method), False


def unsupported_quantisation(path: str, method: str, why: str) -> BaseError:
    """The error for a base that was quantised by a library which cannot dequantise it here."""
    return BaseError(
        f"{path} is quantised with {method}, and cannot be loaded here.",
        why=why,
        fix="use the float checkpoint that it was made from, with quantisation: nf4 if memory "
        f"is short; or install what {method} needs",
    )
