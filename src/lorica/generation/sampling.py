"""How the next token is chosen: greedy, or drawn from the model's distribution with a seed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lorica.base.load import LoadedModel
from lorica.errors import ConfigError, TrainingError, listed

IGNORED_SETTINGS = (
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "num_beams",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "length_penalty",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
)
"""Keys of a base's generation_config.json that change which tokens are chosen."""


MAX_TEMPERATURE = 1e6
"""Far above it, as at it, every token is equally probable."""
MAX_TOP_K = 2**31 - 1
MAX_SEED = 2**63 - 1
NOT_FINITE_FIX = "check base and adapter with lorica eval; load the base in float32"


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of generation. temperature 0 is greedy decoding; top_k 0 allows every token.

    Raises: ConfigError for a value out of range. With all others a `Chooser` can choose.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self):
        for name, value, valid, allowed in (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            (
                "temperature",
                self.temperature,
                0 <= self.temperature <= MAX_TEMPERATURE,
                f"0 (greedy) to {MAX_TEMPERATURE:g}",
            ),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            (
                "top_k",
                self.top_k,
                0 <= self.top_k <= MAX_TOP_K,
                f"0 (all tokens) to {MAX_TOP_K:,}",
            ),
            ("seed", self.seed, 0 <= self.seed <= MAX_SEED, f"0 to {MAX_SEED:,}"),
        ):
            if not valid:
                raise ConfigError(
                    f"{name} is {value!s:.40}; it must be {allowed}.", fix=f"change {name}"
                )

    @property
    def cuts_tail(self) -> bool:
        """Whether the least probable tokens are never chosen."""
        return self.top_p < 1 or self.top_k > 0


def check_logits(ids: Tensor, scores: Tensor) -> Tensor:
    """transformers' logits processor that refuses logits that are not finite.

    ids: (B, T) tokens so far. scores: (B, V) logits of the next token, returned unchanged.
    Raises: TrainingError. Without it `generate` would write the text of token 0.
    """
    if not scores.amax(-1).isfinite().all():  # the maximum is NaN if any is; -inf is allowed
        raise TrainingError(not_finite(ids.shape[1]), fix=NOT_FINITE_FIX)
    return scores


def not_finite(tokens: int) -> str:
    return f"the model's logits are not finite after {tokens} tokens."


@contextmanager
def generation_settings(
    model: Any, sampling: Sampling, *, stop_tokens: Sequence[int], pad_id: int
) -> Iterator[None]:
    """Inside the block `model.generate` uses these settings alone, not those of its base.

    A repetition penalty that the author of a base chose would make two systems incomparable.
    """
    from transformers import GenerationConfig

    choice: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        choice = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    own = model.generation_config
    model.generation_config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=list(stop_tokens) or None,
        pad_token_id=pad_id,
        use_cache=True,
        **choice,
    )
    try:
        yield
    finally:
        model.generation_config = own


def ignored_settings(loaded: LoadedModel) -> list[str]:
    """A notice on what the base's generation_config.json sets and generation ignores."""
    model: Any = loaded.model
    own = model.generation_config.to_diff_dict()
    ignored = [f"{key} {own[key]}" for key in IGNORED_SETTINGS if own.get(key) not in (None, False)]
    notice = (
        f"the base's generation settings are ignored ({listed(ignored, 8)}), except its stop "
        "tokens and stop strings; set --temperature, --top_p and --top_k instead"
    )
    return [notice] if ignored else []
