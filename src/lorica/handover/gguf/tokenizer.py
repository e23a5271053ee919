"""A tokenizer as the fields of a GGUF file.

Two kinds are written: byte-level BPE ("gpt2": merges and the name of a pre-tokenizer), and BPE over
characters with a space written as "▁" ("llama": a score for each token), as SentencePiece trains.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorica.errors import BaseError, counted, listed
from lorica.handover.gguf.pre_tokenizers import PROBES, pre_tokenizer_of
from lorica.handover.gguf.spm import SPACE, pieces, scores_of
from lorica.handover.gguf.writer import Fields

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
CONVERT = "convert the model with llama.cpp's own convert_hf_to_gguf.py"
BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
NEVER = -1e6
"""Score of a token that no merge gives."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens by id, and the type of each."""

    tokens: list[str]
    types: list[int]


def tokenizer_fields(tokenizer: Any, rows: int, source: str) -> tuple[Fields, list[str]]:
    """The fields of a tokenizer, and notices. Its special tokens: see special_tokens.py.

    tokenizer: transformers'. rows: of the embedding. source: of the model, for messages.
    Raises: BaseError if llama.cpp would cut text otherwise.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = {} if backend is None else json.loads(backend.to_str())
    model = state.get("model", {})
    affixes = ("continuing_subword_prefix", "end_of_word_suffix", "dropout")
    if model.get("type") != "BPE" or any(model.get(key) for key in affixes):
        raise BaseError(
            f"{source} has a tokenizer of type {model.get('type')}; lorica writes plain BPE as "
            "GGUF.",
            fix=CONVERT,
        )
    vocabulary = _vocabulary(tokenizer, state, rows, source)
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in model["merges"]]
    if model.get("byte_fallback"):
        fields, notices = _spm_fields(backend, vocabulary, merges, source)
    else:
        fields, notices = _byte_level_fields(backend, state, merges, source)
    fields["tokenizer.ggml.tokens"] = vocabulary.tokens
    fields["tokenizer.ggml.token_type"] = vocabulary.types
    prefixed = fields.get("tokenizer.ggml.add_space_prefix") is True
    return fields, notices + _added_token_notices(state, prefixed=prefixed)


def _vocabulary(tokenizer: Any, state: Mapping[str, Any], rows: int, source: str) -> Vocabulary:
    """Raises: BaseError if a token has no row in the embedding, or two tokens have one text."""
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    if (last := max(by_id)) >= rows:
        raise BaseError(
            f"{source}: the tokenizer has token {last}, and the embedding has {rows:,} rows.",
            fix="resize the embedding to the tokenizer, and save the model again",
        )
    added = {entry["id"]: entry for entry in state["added_tokens"]}
    unknown = state["model"].get("unk_token")
    tokens, types = [], []
    for i in range(rows):
        token, entry = by_id.get(i), added.get(i)
        if token is None:
            tokens.append(f"[PAD{i}]")
            types.append(UNUSED)
            continue
        spaced = entry is not None and not entry["special"]
        tokens.append(token.replace(SPACE, " ") if spaced else token)
        types.append(_type_of(token, entry, unknown, bool(state["model"].get("byte_fallback"))))
    if repeated := [token for token, count in Counter(tokens).items() if count > 1]:
        raise BaseError(
            f"{source}: two tokens have the same text, which llama.cpp does not load.",
            tokens=listed(repeated),
            fix="rename one of them in tokenizer.json",
        )
    return Vocabulary(tokens, types)


def _type_of(token: str, entry: Any, unknown: str | None, fallback: bool) -> int:
    if fallback and token == unknown:
        return UNKNOWN
    if entry is not None:
        return CONTROL if entry["special"] else USER_DEFINED
    return BYTE if fallback and token in BYTES else NORMAL


def _byte_level_fields(
    backend: Any, state: Mapping[str, Any], merges: list[tuple[str, ...]], source: str
) -> tuple[Fields, list[str]]:
    """Of byte-level BPE. Raises: BaseError if text is normalized, or cut in an unknown way."""
    normalizer = (state["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC") or backend.pre_tokenizer is None:
        raise BaseError(
            f"{source} has a tokenizer with the normalizer {normalizer}, which llama.cpp does not "
            "apply.",
            fix=CONVERT,
        )
    chosen, notices = pre_tokenizer_of(backend, bool(state["model"].get("ignore_merges")))
    if normalizer == "NFC":
        notices.append("llama.cpp does not bring text to Unicode's form NFC, as in training")
    fields: Fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": chosen.name,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
    }
    return fields, notices


def _spm_fields(
    backend: Any, vocabulary: Vocabulary, merges: list[tuple[str, ...]], source: str
) -> tuple[Fields, list[str]]:
    """Of BPE over characters. Raises: BaseError if text is normalized or cut otherwise."""
    prefix = _prefix(backend, source)
    scores = scores_of(merges)  # type: ignore[arg-type]
    tokens, types = vocabulary.tokens, vocabulary.types
    joined = {t: scores.get(t, NEVER) for t, kind in zip(tokens, types, strict=True) if len(t) > 1}
    notices, missing = [], BYTES - set(tokens)
    known = {token for token in tokens if len(token) == 1} | {" "}
    texts = ["".join(c for c in t if c in known) for t in PROBES] if missing else PROBES
    cuts = [(_own_ids(backend, t), _llama_ids(prefix + t, joined, vocabulary)) for t in texts]
    if wrong := sum(own != cut for own, cut in cuts):
        notices.append(
            f"llama.cpp cuts {wrong} of {len(texts)} probe texts into other tokens than in "
            "training: the merges are not those of SentencePiece. Send it token ids"
        )
    if _normal(backend, " a") != prefix + SPACE + "a":
        notices.append("llama.cpp reads text that begins with a space with one space more")
    if missing:
        notices.append(
            f"the tokenizer lacks {counted(len(missing), 'token')} for single bytes: llama.cpp "
            "fails on text with characters that are no tokens"
        )
    fields: Fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.add_space_prefix": prefix == SPACE,
        "tokenizer.ggml.scores": [float(scores.get(token, NEVER)) for token in tokens],
    }
    return fields, notices


def _prefix(backend: Any, source: str) -> str:
    """What stands before every text: "▁" or nothing. Raises: BaseError for other changes."""
    for prefix in (SPACE, ""):
        if all(_normal(backend, t) == prefix + t.replace(" ", SPACE) for t in PROBES):
            return prefix
    raise BaseError(
        f"{source} has a tokenizer that changes text in ways that llama.cpp does not know.",
        example=repr(_normal(backend, PROBES[0]))[:80],
        fix=CONVERT,
    )


def _normal(backend: Any, text: str) -> str:
    """A text as the model's merges see it; its words, if it is cut, are parted by "|"."""
    normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return normal
    return "|".join(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal))


def _own_ids(backend: Any, text: str) -> list[int]:
    return backend.encode(text, add_special_tokens=False).ids


def _llama_ids(text: str, joined: Mapping[str, float], vocabulary: Vocabulary) -> list[int]:
    """Token ids of a text, spaces and all, as llama.cpp cuts it."""
    ids = {token: i for i, token in enumerate(vocabulary.tokens)}
    unknown = next((i for i, kind in enumerate(vocabulary.types) if kind == UNKNOWN), -1)
    cut: list[int] = []
    for piece in pieces(text.replace(" ", SPACE), joined):
        bytes_ = [f"<0x{byte:02X}>" for byte in piece.encode()]
        cut += [ids[piece]] if piece in ids else [ids.get(b, unknown) for b in bytes_]
    return cut


def _added_token_notices(state: Mapping[str, Any], *, prefixed: bool) -> list[str]:
    """Of added tokens that take spaces beside them, or are looked for in the normalized text.

    prefixed: the normalized text has a space before it, and so have such tokens.
    """
    flags = ["lstrip", "rstrip", "single_word", *(["normalized"] if prefixed else [])]
    flagged = [e["content"] for e in state["added_tokens"] if any(e[flag] for flag in flags)]
    if not flagged:
        return []
    what = f"spaces beside {listed(flagged)} in a text"
    return [f"llama.cpp reads {what} otherwise than in training"]
