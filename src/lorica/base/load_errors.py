"""Errors of transformers, tokenizers and the hub while a base is loaded, as errors with a fix.

These libraries raise a dozen classes for damaged or foreign files, a bare Exception among them.
Whatever they raise while they read a base is the base's fault, and is reported as such.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from lorica.base.classifier import is_classifier
from lorica.base.model_view import config_view
from lorica.errors import BaseError, FileError, LoricaError, memory_full


@contextmanager
def translated_errors(path: str, *, what: str = "base") -> Iterator[None]:
    """Inside the block, a library's errors become a BaseError or FileError that names `path`.

    what: what is loaded from `path`, for the message.
    """
    try:
        yield
    except LoricaError:
        raise
    except Exception as error:
        if memory_full(error):
            raise
        raise _translated(path, error, what) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of tokenizers' Rust code
            raise
        raise _translated(path, error, what) from None


def _translated(path: str, error: BaseException, what: str) -> LoricaError:
    """The error to raise for what a library raised while it read the base at `path`."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    text = " ".join(str(error).split())
    match error:
        case SafetensorError():
            fix = "download them again"
            return FileError(f"the weights of {path} are damaged: {text}.", fix=fix)
        case StrictDataclassError():
            return BaseError(
                f"config.json of {path} has a wrong value.",
                why=_short(text),
                fix="correct that value, or download the model's config.json again",
            )
        case KeyError():
            text = f"{text} is missing in its files"
    if "untagged enum" in text or "data did not match any variant" in text:
        return BaseError(
            f"tokenizer.json of {path} cannot be read by tokenizers {version('tokenizers')}.",
            why=_short(text),
            fix="pip install -U tokenizers transformers if a newer release wrote it; "
            "else download it again",
        )
    for words, why, fix in _KNOWN:
        if words in text:
            return BaseError(
                f"the {what} {path!r} cannot be loaded.", why=why or _short(text), fix=fix
            )
    return BaseError(
        f"the {what} {path!r} cannot be loaded.",
        why=_short(text) or type(error).__name__,
        fix=f"download it again if its files are damaged; it must be one that the installed "
        f"transformers ({version('transformers')}) knows",
    )


_KNOWN = [
    (
        "trust_remote_code",
        "it needs its author's code, which lorica does not run",
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
"""Words of a library's message, their meaning ("": the message as it stands), and the fix."""


def check_model_type(path: str, config: Any, *, classifier: bool) -> None:
    """Raises: BaseError if a causal language model is wanted, and the base is another kind.

    classifier: a sequence classifier is wanted; any base may become one.
    """
    if classifier:
        return
    view = config_view(config)
    if is_classifier(config):
        raise BaseError(
            f"{path} is a classifier, not a causal language model.",
            fix="give rows of text and label, or use the language model that it was made from",
        )
    if view.is_encoder_decoder:
        raise BaseError(
            f"{path} is an encoder-decoder model ({view.model_type}), not a causal language model.",
            fix="use a decoder-only base; rows of text and label train it as a classifier",
        )


def _short(text: str) -> str:
    return text if len(text) <= 300 else text[:297] + "..."
