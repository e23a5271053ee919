"""Load a base: a local folder, a hub id, or the bundled one.

Weights come from safetensors only, and no code of the model's author is run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorica.base.bundled import FOLDER, NAME
from lorica.errors import BaseError, ConfigError, FileError, listed

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class Base:
    """A frozen model with its tokenizer.

    path: what was asked for: a folder, a hub id, or "bundled".
    labels: the classes of a sequence classifier; None for a language model.
    lines: named lines on what the loader noticed.
    """

    model: nn.Module
    tokenizer: Any
    path: str
    labels: list[str] | None = None
    lines: list[str] = field(default_factory=list)

    @property
    def max_length(self) -> int | None:
        """The longest row in tokens that the model was made for, where it says so."""
        config: Any = self.model.config
        return getattr(config, "max_position_embeddings", None)


def load(path: str, *, dtype: str = "float32", labels: list[str] | None = None) -> Base:
    """The base at `path`, frozen and in eval mode, on the accelerator if there is one.

    dtype: "float32" or "bfloat16".
    labels: classes; with them the base is loaded as a sequence classifier, whose head starts
        from seed 0 where the checkpoint has none.

    Raises: ConfigError, BaseError, FileError.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
    from transformers.utils import logging

    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}.", known=", ".join(DTYPES))
    folder = where(path)
    kind = AutoModelForCausalLM if labels is None else AutoModelForSequenceClassification
    options: dict[str, Any] = {"dtype": DTYPES[dtype]}
    if labels is not None:
        options |= {"num_labels": len(labels), "id2label": dict(enumerate(labels)),
                    "label2id": {n: i for i, n in enumerate(labels)}}  # fmt: skip
    logging.set_verbosity_error()  # what it would warn of is checked below, and named
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, info = _call(
            path, lambda: kind.from_pretrained(
                folder, **options, use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True,  # refused below, by name
            ),
        )  # fmt: skip
    text = load_tokenizer(path)
    model = model.to(torch.accelerator.current_accelerator() or "cpu")
    base = Base(model.eval().requires_grad_(False), text, path, labels)
    base.lines += _check_loaded(path, model, info, labels)
    if text.pad_token_id is None:
        text.pad_token = text.eos_token
    if labels is not None and model.config.pad_token_id is None:
        model.config.pad_token_id = text.pad_token_id
    return base


def load_tokenizer(path: str) -> Any:
    """The tokenizer of the base at `path`."""
    from transformers import AutoTokenizer

    return _call(path, lambda: AutoTokenizer.from_pretrained(where(path), trust_remote_code=False))


def context_length(path: str) -> int | None:
    """The longest row in tokens that the base at `path` was made for; its weights stay unread."""
    from transformers import AutoConfig

    config = _call(path, lambda: AutoConfig.from_pretrained(where(path), trust_remote_code=False))
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def where(path: str) -> str:
    """The folder of a base, or the hub id. Raises: BaseError if it is neither."""
    if path == NAME:
        return str(FOLDER)
    local = Path(path)
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise BaseError(
                f"{path} holds no config.json: it is no model folder.",
                found=listed(sorted(p.name for p in local.iterdir()), 8),
                fix="name the folder of a transformers model",
            )
        return str(local)
    if local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1:
        raise BaseError(f"there is no folder {path}.", fix="check the path")
    return path


def _call(path: str, loader: Any) -> Any:
    """Run a loader of transformers, and say what its errors mean."""
    from safetensors import SafetensorError

    try:
        return loader()
    except SafetensorError as error:
        raise FileError(
            f"the weights of {path} are damaged: {error}.", fix="download them anew"
        ) from None
    except OSError as error:
        text = str(error)
        if "safetensors" in text:
            raise FileError(
                f"{path} has no safetensors weights, and pickles are not read.",
                fix="convert the model to safetensors where that is safe",
            ) from None
        reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise BaseError(
            f"the base {path!r} cannot be loaded.", why=reason,
            fix='name a local folder, a hub id that can be reached, or "bundled"',
        ) from None  # fmt: skip
    except (ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        if "trust_remote_code" in str(error):
            reason = "it needs code of its author's, which lorica does not run"
        raise BaseError(
            f"the base {path!r} cannot be loaded.", why=reason,
            fix="use a base of an architecture that transformers knows",
        ) from None  # fmt: skip


def _check_loaded(path: str, model: nn.Module, info: Any, labels: list[str] | None) -> list[str]:
    """Named lines for tensors that the checkpoint has too many; missing ones are an error."""
    missing, extra = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    misshaped = sorted(str(item) for item in info.get("mismatched_keys", ()))
    head = [k for k in missing if k.split(".")[0] in ("score", "classifier", "pooler")]
    lost = [k for k in missing if labels is None or k not in head]
    if lost or misshaped:
        raise FileError(
            f"the weights of {path} are not whole.",
            missing=listed(lost),
            misshaped=listed(misshaped),
            fix="download the model anew",
        )
    lines = (
        [f"the checkpoint has tensors that the model leaves out: {listed(extra)}"] if extra else []
    )
    if head:
        lines.append(f"new, and trained with the adapter: {listed(head)}")
    return lines
