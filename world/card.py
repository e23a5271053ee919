"""The model card of the base, written from `training.json`: `python -m world.card DIR`.

Every figure on the card is read from the record of the run, so the two cannot disagree. The cost
on two CPU cores is an estimate, from a speed measured apart (`CPU_SPEED`).
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

CPU_SPEED = 2_300  # training tokens per second on two CPU cores, float32, measured


def _table(record: dict[str, Any]) -> str:
    losses, tokens = record["held_out_loss"], record["held_out_tokens"]
    overall = sum(losses[k] * tokens[k] for k in losses) / sum(tokens.values())
    rows = [("all", sum(tokens.values()), overall), *((k, tokens[k], losses[k]) for k in losses)]
    lines = [f"| {kind} | {n:,} | {loss:.3f} | {math.exp(loss):.2f} |" for kind, n, loss in rows]
    return "\n".join(["| kind | tokens | loss | perplexity |", "| --- | --- | --- | --- |", *lines])


def card(record: dict[str, Any], size: int) -> str:
    """The text of the card; `size` is that of the weights file in bytes."""
    trained, seconds = record["tokens_trained"], record["seconds_training"]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
language: en
---
# Lorica base

A small Llama with {record["parameters"]:,} parameters, pretrained from scratch on text about an
invented world. It exists so that fine-tuning can be tried, tested and measured anywhere, with no
download. It knows a few people and towns, reads short passages, copies codes, sorts things into
kinds, and chats in a plain template. It knows nothing about the real world.

## Size

- weights: {size / 1e6:.1f} MB, bfloat16, tied embeddings
- 6 layers, width 256, 8 heads on 4 key-value heads, MLP 704, context 512 tokens
- byte-level BPE tokenizer, 2,048 tokens; digits are single tokens

## Data

All text is written by the generator in `world/` of the repository: {record["tokens_generated"]:,}
tokens in {record["arguments"]["documents"]:,} documents of seed {record["arguments"]["seed"]}.
There is no text by other people in it. The three fine-tuning tasks (tickets, translation,
reviews) are held out: none of their sentences, languages or records occurs in the data.

## Training cost

{trained:,} tokens in {record["steps"]:,} steps took {seconds:.0f} seconds on
{record["device"]}, {trained / seconds:,.0f} tokens per second; writing the text took
{record["seconds_data"]:.0f} seconds more. On two CPU cores, at about {CPU_SPEED:,} tokens per
second (measured in a short run), the same training would take about
{trained / CPU_SPEED / 3600:.0f} hours.

    python -m world.pretrain --out DIR

## Held-out loss

Mean loss per token (nats) on documents of seed {record["held_out_seed"]}, which is not trained
on; each document is read alone, from its first token. Names, codes and numbers drawn at random
cannot be predicted, so the loss has a floor well above zero. The first row is over all tokens
measured, {record["arguments"]["held_out"]} documents of each kind.

{_table(record)}
"""


def write_card(folder: Path) -> None:
    """README.md of the model in `folder`."""
    record = json.loads((folder / "training.json").read_text())
    size = (folder / "model.safetensors").stat().st_size
    (folder / "README.md").write_text(card(record, size))


if __name__ == "__main__":
    write_card(Path(sys.argv[1]))
