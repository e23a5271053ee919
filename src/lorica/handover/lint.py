"""What a runtime would refuse of an export, by its rules: errors before it is written, notices."""

from typing import Any

from lorica.base.load import LoadedModel
from lorica.base.model_view import config_of
from lorica.errors import ConfigError
from lorica.generation.prompts import end_of_turn
from lorica.handover.runtimes import Runtime
from lorica.handover.stop_tokens import missing_stops


def check_rank(rank: int, runtime: Runtime) -> None:
    """Raises: ConfigError if the runtime has no setting with room for `rank`."""
    if runtime.setting_for(rank) is None:
        most = max(runtime.ranks)
        raise ConfigError(
            f"the LoRA has rank {rank}, and {runtime.label} takes at most {most}.",
            fix=f"truncate it with --rank {most} (the error is measured), or merge it",
        )


def lint(opened: LoadedModel, runtime: Runtime, *, merged: bool) -> list[str]:
    """Notices on what the base and its tokenizer are to the runtime.

    merged: the model is written, with the stops of the training; a GGUF file of the base has them,
    and vLLM is given them by start.sh.
    """
    knows_stops = merged or runtime.name in ("llamacpp", "vllm")
    stops = [] if knows_stops else _stops(opened)
    return [*_head_size(opened, runtime), *stops, *_prompts(opened)]


def _head_size(opened: LoadedModel, runtime: Runtime) -> list[str]:
    config: Any = config_of(opened.model)
    heads = getattr(config, "num_attention_heads", None)
    hidden = getattr(config, "hidden_size", None)
    size = getattr(config, "head_dim", None) or (hidden and heads and hidden // heads)
    if not size or not runtime.head_sizes or size in runtime.head_sizes:
        return []
    sizes = ", ".join(map(str, runtime.head_sizes))
    return [f"the base's heads have size {size}; {runtime.label} on a CPU takes {sizes}"]


def _stops(opened: LoadedModel) -> list[str]:
    """A notice on a stop of the training that a runtime does not know from the base."""
    missing = missing_stops(opened)
    if not missing:
        return []
    notice = (
        f"in training an answer ended in {end_of_turn(opened)!r}, and the base's generation "
        f"settings do not stop at it: send stop_token_ids: {missing} with each request"
    )
    return [notice]


def _prompts(opened: LoadedModel) -> list[str]:
    form = opened.prompt_format
    if form is None:
        notice = (
            "how its prompts were written is not known (lorica train notes it): recorded are "
            "answers to plain texts, and neither a template nor its stop is verified"
        )
        return [notice]
    if form.kind == "chat":
        return []
    notice = (
        f"the adapter was trained with {form.name}: ask /v1/completions with that text, for "
        "/v1/chat/completions puts a chat template around it"
    )
    return [notice]
