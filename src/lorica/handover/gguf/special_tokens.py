"""Special tokens and the chat template of a model as fields of a GGUF file.

llama.cpp ends a text at its EOS, EOT and EOM tokens, and at every token whose text it knows as an
end (src/llama-vocab.cpp, November 2026).
"""

from typing import Any

from lorica.errors import listed
from lorica.handover.gguf.writer import Fields

ENDS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
    "<|fim_pad|>",
    "<fim-pad>",
    "<fim_pad>",
    "<PAD>",
    "[PAD]",
    "<|fim_repo|>",
    "<|repo_name|>",
    "<fim-repo>",
    "<REPO>",
    "<reponame>",
    "<|file_sep|>",
}
"""Texts of tokens at which llama.cpp ends an answer, whatever the file states."""


def special_token_fields(tokenizer: Any, stops: set[int]) -> tuple[Fields, list[str]]:
    """The fields of BOS, EOS, further stop tokens, padding and template, and notices.

    stops: the stop tokens of training: EOS and those of generation_config.json.
    """
    fields, notices = _boundary_fields(tokenizer)
    ends, more = _end_fields(tokenizer, stops)
    fields, notices = {**fields, **ends}, [*notices, *more]
    for name, value in (("padding", tokenizer.pad_token_id), ("unknown", tokenizer.unk_token_id)):
        if value is not None:
            fields[f"tokenizer.ggml.{name}_token_id"] = value
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    if template:
        fields["tokenizer.chat_template"] = template
        if "bos_token" in template and tokenizer.bos_token_id is None:
            notices.append("the chat template names bos_token, which the tokenizer does not have")
    return fields, notices


def _boundary_fields(tokenizer: Any) -> tuple[Fields, list[str]]:
    """BOS, and whether BOS and EOS are put around every text."""
    notices = []
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next(i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain)
    before, after = whole[:at], whole[at + len(plain) :]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if before not in ([], [bos]) or after not in ([], [eos]):
        notices.append(
            f"the tokenizer puts the tokens {before} before and {after} behind every text; "
            "llama.cpp puts BOS and EOS there, or nothing"
        )
    # Without a BOS of its own a file means token 11 or 1: EOS is named, and never added.
    fields: Fields = {
        "tokenizer.ggml.bos_token_id": eos if bos is None else bos,
        "tokenizer.ggml.add_bos_token": bool(before),
        "tokenizer.ggml.add_eos_token": bool(after),
    }
    return {key: value for key, value in fields.items() if value is not None}, notices


def _end_fields(tokenizer: Any, stops: set[int]) -> tuple[Fields, list[str]]:
    """EOS, and further stop tokens as EOT and EOM."""
    vocabulary = tokenizer.get_vocab()
    by_text = {vocabulary[text] for text in ENDS if text in vocabulary}
    eos = tokenizer.eos_token_id
    own = sorted(stops - {eos, None})
    # Those that llama.cpp would not know by their text come first: there are two places.
    ordered = [eos] * (eos is not None) + sorted(own, key=lambda token: token in by_text)
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    fields: Fields = dict(zip(keys, ordered, strict=False))

    def texts(tokens: list[int]) -> str:
        return listed(tokenizer.convert_ids_to_tokens(tokens))

    notices = []
    if not ordered:
        notices.append("the model has no EOS: llama.cpp takes a token of its own choice for it")
    if lost := [token for token in ordered[len(keys) :] if token not in by_text]:
        notices.append(f"llama.cpp does not end at {texts(lost)}: pass them as stop strings")
    if more := sorted(by_text - set(ordered)):
        notices.append(f"llama.cpp also ends an answer at {texts(more)}, by the token's name")
    return fields, notices
