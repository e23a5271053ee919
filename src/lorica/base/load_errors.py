"""Say why a base cannot be loaded: errors of transformers, tokenizers and the hub, in our words.

These libraries raise a dozen classes for damaged or foreign files, a bare Exception among them.
Whatever they raise while they read a base is the base's fault, and is reported as such.
"""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any, TypeVar

from lorica.base.classifier import is_classifier
from lorica.errors import BaseError, FileError, LoricaError, memory_full

T = TypeVar("T")


def explained(path: str, load: Callable[[], T], *, what: str = "base") -> T:
    """`load()`, whose errors become a BaseError or FileError that names `path` and the fix.

    what: what is loaded from `path`, for the message.
    """
    try:
        return load()
    except LoricaError:
        raise
    except BaseException as error:
        foreign = isinstance(error, Exception) or type(error).__name__ == "PanicException"  # Rust's
        if memory_full(error) or not foreign:
            raise
        raise reason_of(path, error, what) from None


def reason_of(path: str, error: BaseException, what: str = "base") -> LoricaError:
    """The error to raise for what a library raised while it read the base at `path`."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    text = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return FileError(f"the weights of {path} are damaged: {text}.", fix="download them again")
    if isinstance(error, StrictDataclassError):
        return BaseError(
            f"config.json of {path} has a wrong value.",
            why=_short(text),
            fix="correct that value, or download the model's config.json again",
        )
    if "untagged enum" in text or "data did not match any variant" in text:
        return BaseError(
            f"tokenizer.json of {path} is not one that tokenizers {version('tokenizers')} reads.",
            why=_short(text),
            fix="pip install -U tokenizers transformers if a newer release wrote it; "
            "else download it again",
        )
    for words, why, fix in _KNOWN:
        if words in text:
            return BaseError(
                f"the {what} {path!r} cannot be loaded.", why=why or _short(text), fix=fix
            )
    if isinstance(error, KeyError):
        text = f"{text} is missing in its files"
    return BaseError(
        f"the {what} {path!r} cannot be loaded.",
        why=_short(text) or type(error).__name__,
        fix=f"download it again if its files are damaged; it must be one that the installed "
        f"transformers ({version('transformers')}) knows",
    )


_KNOWN = [
    (
        "trust_remote_code",
        "it needs code of its author's, which lorica does not run",
        "use a copy of the model in transformers' own format",
    ),
    (
        "does not recognize this architecture",
        "",
        "pip install -U transformers, or use another base",
    ),
    (
        "Unrecognized configuration class",
        "it is neither a causal language model nor a sequence classifier",
        "use a base of one of these two kinds",
    ),
]
"""Words in a library's message, what they mean ("": as they stand), and the fix."""


def check_kind_of_model(path: str, config: Any, *, classifier: bool) -> None:
    """Raises: BaseError for a model that is no causal language model, and is to be one."""
    if not classifier and is_classifier(config):
        raise BaseError(
            f"{path} is a classifier, not a causal language model.",
            fix="give rows of text and label, or use the language model that it was made from",
        )
    if not classifier and getattr(config, "is_encoder_decoder", False):
        raise BaseError(
            f"{path} is an encoder-decoder model ({config.model_type}), not a causal language "
            "model.",
            fix="use a decoder-only base; rows of text and label train it as a classifier",
        )


def quantised_elsewhere(path: str, method: str, error: LoricaError) -> LoricaError:
    """The error for a base that was packed by a library which cannot unpack it here."""
    return BaseError(
        f"{path} is quantised with {method}, and cannot be loaded here.",
        why=error.facts.get("why", error.what),
        fix="use the float checkpoint that it was made from, with quantisation: nf4 if memory "
        f"is short; or install what {method} needs",
    )


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
