"""Load the base of a run: weights, quantisation, added tokens, activation checkpointing."""

from pathlib import Path
from typing import Any

from lorica import progress
from lorica.base.added_tokens import add_tokens, resize_embedding
from lorica.base.fingerprint import Fingerprint, fingerprint
from lorica.base.load import LoadedModel, load, load_tokenizer
from lorica.base.quantised_model import store_dequantised_layers
from lorica.training.config import TrainConfig

FLOAT16 = (
    "float16 holds no number above 65,504, and gradients below 6e-8 become 0: the losses are not "
    "scaled, so bfloat16 is the safer dtype to train in"
)


def load_base(
    config: TrainConfig, labels: list[str] | None, offload: str | None = None
) -> LoadedModel:
    """The base of a run. labels: the classes of its rows; None: it is a language model.

    offload: where its frozen weights wait, see lorica.base.offload; None: as the settings say.

    Raises: what `base.load` raises.
    """
    progress.announce(f"loading the base {config.base}")
    base = load(
        config.base,
        dtype=config.dtype,
        labels=labels,
        quantisation=config.quantisation,
        double_quantisation=config.double_quantisation,
        offload=offload or config.offload,
    )
    model: Any = base.model
    if config.dtype == "float16":
        base.notices.append(FLOAT16)
    if tokens := config.data.add_tokens:
        before = load_tokenizer(config.base)
        add_tokens(base.tokenizer, tokens)
        if (rows := len(base.tokenizer)) > len(model.get_input_embeddings().weight):
            resize_embedding(model, before, base.tokenizer, rows)
    if config.unpacked_gib:
        base.notices.append(store_dequantised_layers(model, int(config.unpacked_gib * 2**30)))
    if config.gradient_checkpointing:
        # The second name is that of transformers before 5.20.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    return base


def exact_fingerprint(base: LoadedModel, config: TrainConfig) -> Fingerprint:
    """Every bit of the base, and its tokenizer: a resumed run must find the same."""
    return fingerprint(base.model, path=config.base, tokenizer=base.tokenizer, hashing="exact")


def vocabulary_size(base: LoadedModel) -> int | None:
    """How many tokens a language model chooses among; None: it is a classifier."""
    config: Any = base.model.config
    return None if base.labels is not None else config.get_text_config().vocab_size


def absolute_if_local(base: str) -> str:
    """A local folder as an absolute path, so that the adapter finds it from anywhere."""
    return str(Path(base).resolve()) if Path(base).is_dir() else base
