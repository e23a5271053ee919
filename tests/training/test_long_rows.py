"""Rows that are longer than the base was trained for: accepted on request, with a notice."""

import json

import pytest

import lorica
from lorica.base.describe import context_length, row_limit
from lorica.base.load import load_tokenizer
from lorica.errors import LoricaError
from tests.base.architectures import tiny
from tests.training.rows import settings


def long_rows(folder, length):
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"text": "the cat ran to the river " * 4} for _ in range(11)]
    rows.append({"text": "the cat ran to the river " * length})
    path = folder / "long.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_longer_row_is_trained_on_request_and_named(small_base, tmp_path):
    context = context_length(str(small_base))
    assert context is not None
    path = long_rows(tmp_path, context)
    data = {"path": str(path), "validation": 0}
    changed = {"max_steps": 1, "micro_batch_size": 12, "gradient_accumulation_steps": 1}
    with pytest.raises(LoricaError, match=f"longer than {context} tokens"):
        lorica.train(**settings(small_base, tmp_path / "a", data=data, **changed), show=False)
    data["max_length"] = 20 * context
    done = lorica.train(**settings(small_base, tmp_path / "b", data=data, **changed), show=False)
    (notice,) = [line for line in done.notices if "was trained for" in line]
    assert notice.startswith(f"1 of 12 rows are longer than {context:,} tokens")


def test_a_base_with_a_table_of_positions_takes_no_longer_rows(tmp_path):
    """Its table ends, so that a higher data.max_length cannot help."""
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    load_tokenizer("bundled").save_pretrained(tmp_path)
    context = context_length(str(tmp_path))
    assert context is not None
    assert row_limit(str(tmp_path), 10 * context) == context
