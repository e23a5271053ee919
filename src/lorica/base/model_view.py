"""What a transformers model and its config say of themselves, as typed values.

Attributes of transformers' classes differ between architectures, and a model may be a plain
torch module without any. They are asked for here, and nowhere else in base and formats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class ConfigView:
    """A transformers config. Of a model of text and images: vocab_size to window are of its text.

    path: where the config was loaded from. max_positions: the largest length in tokens that the
    config states; None: no limit. stated_positions: max_position_embeddings as it stands.
    rope: rope_parameters; has_rope: positions are rotated, by whatever field says so.
    window: of sliding attention, in tokens. quantisation: transformers' quantization_config.
    problem_type: of a classifier's outputs.
    """

    model_type: str = ""
    path: str = ""
    pad_token_id: int | None = None
    is_encoder_decoder: bool = False
    quantisation: Any = None
    problem_type: str | None = None
    vocab_size: int | None = None
    hidden_size: int | None = None
    max_positions: int | None = None
    stated_positions: Any = None
    rope: Mapping[str, Any] = field(default_factory=dict)
    has_rope: bool = False
    window: int | None = None

    @property
    def max_length(self) -> int | None:
        """The longest row in tokens by the config; None: no limit.

        A dynamic RoPE goes on past the length of its training, by its factor.
        """
        if self.max_positions is None or "dynamic" not in str(self.rope.get("rope_type")):
            return self.max_positions
        return int(self.max_positions * max(float(self.rope.get("factor") or 1.0), 1.0))


def config_view(config: Any) -> ConfigView:
    """The view of a transformers config."""
    find_text = _ask(config, "get_text_config")
    text = config if find_text is None else find_text()
    lengths = (_ask(text, name) for name in LENGTHS)
    rope = _ask(text, "rope_parameters")
    problem = _ask(config, "problem_type")
    return ConfigView(
        model_type=str(_ask(config, "model_type") or ""),
        path=str(_ask(config, "_name_or_path") or ""),
        pad_token_id=_ask(config, "pad_token_id"),
        is_encoder_decoder=bool(_ask(config, "is_encoder_decoder")),
        quantisation=_ask(config, "quantization_config"),
        problem_type=None if problem is None else str(problem),
        vocab_size=_ask(text, "vocab_size"),
        hidden_size=_ask(text, "hidden_size"),
        max_positions=next((n for n in lengths if isinstance(n, int) and n > 0), None),
        stated_positions=_ask(text, "max_position_embeddings"),
        rope=rope if isinstance(rope, dict) else {},
        has_rope=bool(rope or _ask(text, "rope_theta")),
        window=_ask(text, "sliding_window"),
    )


@dataclass(frozen=True)
class ModelView:
    """A model, which may be any torch module.

    decoder: the model without its head; the model itself if it has no such part.
    prefix: what keys of the decoder begin with in checkpoints of the whole model.
    input_embeddings, output_head: None: the model names none.
    float32_modules: parts of names of modules that transformers keeps in float32 when loading;
    strict_float32_modules: also if bfloat16 is asked for.
    special_tokens: ids of its generation settings, by name, as they stand.
    remote_fingerprints: of the model that it stands for, whose weights are on another machine.
    """

    config: ConfigView | None
    decoder: nn.Module
    prefix: str
    input_embeddings: nn.Module | None
    output_head: nn.Module | None
    float32_modules: frozenset[str]
    strict_float32_modules: frozenset[str]
    special_tokens: Mapping[str, Any]
    has_peft_adapter: bool
    remote_fingerprints: Mapping[Any, Any] | None


def model_view(model: nn.Module) -> ModelView:
    """The view of a model, as it is now."""
    config, settings = config_of(model), _ask(model, "generation_config")
    return ModelView(
        config=None if config is None else config_view(config),
        decoder=_ask(model, "base_model") or model,
        prefix=str(_ask(model, "base_model_prefix") or ""),
        input_embeddings=_call(_ask(model, "get_input_embeddings")),
        output_head=_call(_ask(model, "get_output_embeddings")),
        float32_modules=frozenset(_ask(model, "_keep_in_fp32_modules") or ()),
        strict_float32_modules=frozenset(_ask(model, "_keep_in_fp32_modules_strict") or ()),
        special_tokens={name: _ask(settings, name) for name in SPECIAL_TOKENS},
        has_peft_adapter=bool(_ask(model, "_hf_peft_config_loaded")),
        remote_fingerprints=_ask(model, "stands_for"),
    )


def config_of(model: nn.Module) -> Any:
    """The transformers config of a model; None: it has none."""
    config = _ask(model, "config")
    return config if _ask(config, "to_dict") else None


def config_view_of(model: nn.Module) -> ConfigView:
    """The view of the config of a model; of a model without one, an empty view."""
    config = config_of(model)
    return ConfigView() if config is None else config_view(config)


def embedding_rows(model: nn.Module) -> int | None:
    """How many tokens the base has embeddings of."""
    return rows_of(_call(_ask(model, "get_input_embeddings")))


def rows_of(module: nn.Module | None) -> int | None:
    """The rows of an embedding, of torch's class or of another's; None: it is not an embedding."""
    return _ask(module, "num_embeddings")


def offset_of(table: nn.Embedding) -> int | None:
    """The rows that a position table keeps before that of the first token; None: it names none."""
    offset = _ask(table, "offset")
    return offset if type(offset) is int else None


def is_causal(attention: nn.Module) -> bool:
    """Whether an attention layer of transformers masks later tokens, as most do."""
    causal = _ask(attention, "is_causal")
    return True if causal is None else bool(causal)


def converts_weights(model: nn.Module) -> bool:
    """Whether transformers changed tensors of the files as it loaded them, beyond their names.

    It fuses the experts of most mixtures, for example.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    used = _ask(model, "_weight_conversions")
    if used is None:  # another loader: what transformers knows of this architecture
        used = get_model_conversion_mapping(model, add_legacy=False)  # type: ignore[arg-type]
    return not all(isinstance(conversion, WeightRenaming) for conversion in used)


def _call(method: Callable[[], nn.Module | None] | None) -> nn.Module | None:
    return None if method is None else method()


def _ask(owner: Any, name: str) -> Any:
    """An attribute of a transformers object; None: it has none."""
    return getattr(owner, name, None)
