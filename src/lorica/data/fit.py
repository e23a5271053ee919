"""Rows and the longest length: raise, drop, truncate or split, each counted in a named line."""

from dataclasses import dataclass, replace
from pathlib import Path

from lorica.data.config import DataConfig, Overlong
from lorica.data.tokenise import Example
from lorica.errors import ConfigError, DataError, listed


@dataclass(frozen=True)
class Fitted:
    examples: list[Example]
    overlong: int  # rows that were longer than the limit
    unlearned: int  # rows without a label token, and so dropped
    lines: list[str]


def limit_of(config: DataConfig, max_length: int | None) -> int | None:
    """The longest row in tokens: what the recipe says, at most what the base takes."""
    if config.max_length is None:
        return max_length
    if max_length is not None and config.max_length > max_length:
        raise ConfigError(
            f"data.max_length is {config.max_length}, but the base takes {max_length} tokens.",
            fix=f"lower it to {max_length}, or leave it out",
        )
    return config.max_length


def policy_of(config: DataConfig) -> Overlong:
    if config.overlong is not None:
        return config.overlong
    return "split" if Path(config.path).suffix.lower() == ".txt" else "raise"


def fit(
    examples: list[Example],
    kind: str,
    config: DataConfig,
    limit: int | None,
    policy: Overlong | None = None,
) -> Fitted:
    """The examples that are trained on: none longer than `limit`, each with a label.

    Raises: DataError for overlong rows under `raise`, and if no row has a label token.
    """
    policy = policy or policy_of(config)
    if policy == "split" and kind != "text":
        raise ConfigError(
            f"data.overlong is split, but the rows are {kind}; only plain text has no rows to "
            "keep whole.",
            fix="data.overlong: truncate, drop or raise",
        )
    if policy == "split" and limit is None:
        raise ConfigError(
            "data.overlong is split, but no length is given.", fix="set data.max_length"
        )
    long = [e for e in examples if limit is not None and len(e.ids) > limit]
    lines = []
    if long and limit is not None:
        examples, line = _apply(policy, examples, long, config, limit)
        lines.append(line)
    return _with_labels(examples, kind, config, len(long), lines)


def _apply(
    policy: Overlong, examples: list[Example], long: list[Example], config: DataConfig, limit: int
) -> tuple[list[Example], str]:
    longest = max(long, key=lambda e: len(e.ids))
    facts = f"{len(long)} of {len(examples)} rows are longer than {limit} tokens"
    if policy == "drop":
        kept = [e for e in examples if len(e.ids) <= limit]
        return kept, f"{facts} and are dropped: {listed(e.where for e in long)}"
    if policy == "truncate":
        kept = [replace(e, ids=e.ids[:limit], learned=e.learned[:limit]) for e in examples]
        return kept, f"{facts} and lose their ends: {listed(e.where for e in long)}"
    if policy == "split":
        kept = [block for e in examples for block in _blocks(e, limit)]
        return kept, f"{facts} and are split: {len(kept)} rows in all"
    raise DataError(
        f"{config.path}: {facts}.",
        rows=listed(f"{e.where} ({len(e.ids)})" for e in long),
        longest=f"{len(longest.ids)} tokens, {longest.where}",
        fix=f"data.max_length: {len(longest.ids)} if the base takes it; or data.overlong: "
        "drop or truncate",
    )


def _blocks(example: Example, limit: int) -> list[Example]:
    """Consecutive stretches of `limit` tokens; the first token of each is only read."""
    blocks = []
    for start in range(0, len(example.ids), limit):
        end = min(start + limit, len(example.ids))
        learned = [False, *example.learned[start + 1 : end]]
        where = (
            example.where
            if start == 0 and end == len(example.ids)
            else (f"{example.where} tokens {start}-{end - 1}")
        )
        blocks.append(replace(example, ids=example.ids[start:end], learned=learned, where=where))
    return blocks


def _with_labels(
    examples: list[Example], kind: str, config: DataConfig, overlong: int, lines: list[str]
) -> Fitted:
    if kind == "label":
        return Fitted(examples, overlong, 0, lines)
    kept = [e for e in examples if any(e.learned)]
    empty = [e for e in examples if not any(e.learned)]
    if not kept:
        raise DataError(
            f"{config.path}: no row has a token to learn; all labels are masked.",
            rows=listed(e.where for e in empty),
            fix="give rows with an answer; if answers were cut off, raise data.max_length",
        )
    if empty:
        places = listed(e.where for e in empty)
        lines = [*lines, f"{len(empty)} rows have nothing to learn and are dropped: {places}"]
    return Fitted(kept, overlong, len(empty), lines)
