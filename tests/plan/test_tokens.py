"""Tokens that are counted without transformers are those that training computes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lorica.base.bundled import FOLDER
from lorica.base.load import load, load_tokenizer
from lorica.data.batch import pack
from lorica.data.load import load_data
from lorica.errors import ConfigError, DataError, FileError
from lorica.evaluation.loss import label_logits
from lorica.plan import sample, tokens
from lorica.plan.shapes import read_shapes
from lorica.plan.tokenizer import CharacterTokenizer, PlainTokenizer, open_tokenizer
from lorica.plan.tokens import count_tokens
from tests.plan.planned import settings, write_base, write_rows

CHAT = [{"role": "user", "content": "What is broken?"}, {"role": "assistant", "content": "A lamp."}]


@pytest.fixture
def rows(tmp_path):
    return write_rows(tmp_path / "rows.jsonl")


def open_rows(path):
    return Path(path).read_text(encoding="utf-8").splitlines()


def trained_rows(config):
    data = load_data(config.data, load_tokenizer("bundled"), seed=config.seed, max_length=512)
    return data.train


def test_counts_are_those_of_training(rows):
    config = settings(rows)
    counts, train = count_tokens(config, read_shapes("bundled")), trained_rows(config)
    assert counts.rows == len(train)
    assert counts.real_tokens == train.lengths.sum()
    assert counts.label_tokens == train.label_counts.sum()
    assert counts.longest == train.lengths.max()
    assert counts.error == 0


def test_the_files_of_a_mixture_are_counted_by_their_weights(tmp_path):
    files = []
    for name, text in (("short", "a"), ("long", "a" * 90)):
        files.append(tmp_path / f"{name}.jsonl")
        lines = (json.dumps({"prompt": f"{i}", "completion": text}) for i in range(20))
        files[-1].write_text("\n".join(lines))
    weighted = [{"path": str(file), "weight": w} for file, w in zip(files, (3, 0.5), strict=True)]
    config = settings(weighted, **{"data.validation": 0})
    counts, train = count_tokens(config, read_shapes("bundled")), trained_rows(config)
    short, long = train.lengths[:20].sum(), train.lengths[20:].sum()
    assert counts.rows == 70
    assert counts.real_tokens == 3 * short + 0.5 * long
    assert counts.mean.tokens / counts.mean.rows < 1.1 * (counts.real_tokens / 70)


def test_conversations_are_rendered_by_the_chat_template(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(9)))
    config = settings(str(path))
    counts = count_tokens(config, read_shapes("bundled"))
    assert counts.real_tokens == trained_rows(config).lengths.sum()


def test_a_micro_batch_of_more_rows_than_are_drawn_is_like_its_first_rows(rows, monkeypatch):
    changes = {"micro_batch_size": 120, "max_steps": 1, "method": {"name": "lora", "dropout": 0.1}}
    whole = count_tokens(settings(rows, **changes), read_shapes("bundled")).largest
    monkeypatch.setattr(tokens, "MAX_DRAWN_ROWS", 60)
    drawn = count_tokens(settings(rows, **changes), read_shapes("bundled")).largest
    assert drawn.rows == whole.rows == 120
    assert drawn.tokens == pytest.approx(whole.tokens, rel=0.2)
    assert drawn.longest <= whole.longest


@pytest.mark.parametrize("setting", ["micro_batch_size", "gradient_accumulation_steps"])
def test_a_step_over_the_rows_again_and_again_is_refused_as_in_training(rows, setting):
    config = settings(rows, **{setting: 10**12})
    with pytest.raises(ConfigError, match=r"one optimizer step would use [\d,]+ rows"):
        count_tokens(config, read_shapes("bundled"))


def test_a_micro_batch_counts_shared_prefixes_once(rows):
    config = settings(rows, micro_batch_size=60, **{"data.validation": 0})
    counts = count_tokens(config, read_shapes("bundled"))
    batch = pack(list(trained_rows(config)), share_prefixes=True)
    assert counts.largest.tokens == batch.input_ids.numel() < batch.tokens == counts.real_tokens
    assert counts.computed_tokens == counts.largest.tokens


def test_dropout_shares_nothing_and_a_base_that_cannot_pack_pads(rows):
    config = settings(rows, micro_batch_size=60, **{"data.validation": 0, "method.dropout": 0.1})
    shapes = read_shapes("bundled")
    counts = count_tokens(config, shapes)
    assert counts.computed_tokens == counts.real_tokens
    padded = count_tokens(config, replace(shapes, packs=False))
    assert padded.computed_tokens == 60 * padded.longest > padded.real_tokens


def test_the_rows_of_a_short_run_do_not_count_as_padding(rows):
    """They are longer or shorter than the others of an epoch."""
    changes = {"data.validation": 0, "method.dropout": 0.1, "max_steps": 1}
    counts = count_tokens(settings(rows, micro_batch_size=1, **changes), read_shapes("bundled"))
    assert counts.mean.tokens != pytest.approx(counts.real_tokens / counts.rows, rel=0.01)
    assert counts.computed_tokens == counts.real_tokens


def test_the_largest_micro_batch_of_a_run_has_its_longest_row(rows):
    counts = count_tokens(settings(rows, micro_batch_size=1), read_shapes("bundled"))
    assert counts.largest.tokens == counts.longest > counts.mean.tokens


def test_a_token_budget_bounds_the_largest_micro_batch(rows):
    """Also without torch; the tokens of an epoch stay the same, but for shared prefixes."""
    changes = {"data.validation": 0, "method.dropout": 0.1, "gradient_accumulation_steps": 2}
    by_rows = count_tokens(settings(rows, **changes), read_shapes("bundled"))
    budget = 2 * by_rows.longest
    config = settings(rows, max_tokens_per_micro_batch=budget, **changes)
    counts = count_tokens(config, read_shapes("bundled"))
    assert counts.largest.tokens <= budget < by_rows.largest.tokens
    assert counts.computed_tokens == pytest.approx(by_rows.computed_tokens, rel=0.05)
    assert counts.mean.rows < by_rows.mean.rows


def test_a_large_file_is_estimated_from_its_first_rows(tmp_path, monkeypatch):
    path = write_rows(tmp_path / "rows.jsonl", 3_000)
    config = settings(path, **{"data.validation": path})  # as large as the file itself
    whole = count_tokens(settings(path), read_shapes("bundled"))
    monkeypatch.setattr(sample, "COUNTED_BYTES", 60_000)
    monkeypatch.setattr(tokens, "COUNTED_BYTES", 60_000)
    counts = count_tokens(settings(path), read_shapes("bundled"))
    assert counts.rows != whole.rows  # it is an estimate
    assert counts.rows == pytest.approx(whole.rows, rel=0.02)
    assert counts.real_tokens == pytest.approx(whole.real_tokens, rel=0.03)
    assert counts.validation_rows == pytest.approx(whole.validation_rows, abs=3)
    assert 0 < counts.error < 0.02
    assert "tokens are counted on the first" in counts.notices[0]
    assert count_tokens(config, read_shapes("bundled")).validation_rows == pytest.approx(
        3_000, rel=0.02
    )


def test_a_large_text_is_estimated_from_its_first_part(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    path.write_text("The lamp of my uncle is broken, and it is blue.\n" * 2_000)
    whole = count_tokens(settings(str(path)), read_shapes("bundled"))
    monkeypatch.setattr(sample, "COUNTED_BYTES", 30_000)
    counts = count_tokens(settings(str(path)), read_shapes("bundled"))
    assert counts.real_tokens == pytest.approx(whole.real_tokens, rel=0.05)
    assert counts.rows == pytest.approx(whole.rows, rel=0.1)


def test_estimated_lengths_refuse_no_row(tmp_path):
    base = write_base(tmp_path / "base", max_position_embeddings=64)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a " * 20, "completion": "word " * 100}))
    assert count_tokens(settings(str(path), base), read_shapes(base)).longest == 64


def test_conditions_and_classes(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": f"a {i}", "completion": " c", "condition": f"task{i % 3}"} for i in range(40)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    counts = count_tokens(settings(str(path)), read_shapes("bundled"))
    assert counts.conditions == ("task0", "task1", "task2") and counts.classes is None
    rows = [{"text": "a b c", "label": f"class{i % 4}"} for i in range(40)]
    path.write_text("\n".join(map(json.dumps, rows)))
    counts = count_tokens(settings(str(path)), read_shapes("bundled"))
    assert counts.classes == 4
    assert counts.label_tokens == counts.rows  # one of each row


def test_a_row_that_is_too_long_is_the_error_of_training(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 3_000, "completion": " end"}))
    with pytest.raises(DataError, match="longer than 512 tokens"):
        count_tokens(settings(str(path)), read_shapes("bundled"))


def test_tokens_of_a_base_without_tokenizer_are_estimated(tmp_path, rows):
    base = write_base(tmp_path / "base")
    counts = count_tokens(settings(rows, base), read_shapes(base))
    assert "estimated as 4 characters each" in counts.notices[0]
    tokenizer = open_tokenizer(tmp_path / "base")
    assert isinstance(tokenizer, CharacterTokenizer)
    assert len(tokenizer("a lamp", add_special_tokens=False)["input_ids"]) == 2
    characters = sum(len("".join(json.loads(row).values())) for row in open_rows(rows))
    assert counts.real_tokens == pytest.approx(characters / 4, rel=0.15)


def test_the_plain_tokenizer_is_that_of_transformers():
    plain, full = PlainTokenizer(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    texts = ["Ticket: my lamp.", "", "ünï\n\n", "<|user|>a<|end|>"]
    assert plain(texts)["input_ids"] == full(texts)["input_ids"]
    assert plain.eos_token_id == full.eos_token_id
    assert plain.chat_template == full.chat_template
    assert plain.decode(plain(texts[0])["input_ids"]) == texts[0]


def test_a_damaged_tokenizer_is_an_error(tmp_path, rows):
    base = write_base(tmp_path / "base")
    (tmp_path / "base/tokenizer.json").write_text("{}")
    with pytest.raises(FileError, match=r"tokenizer\.json cannot be read"):
        count_tokens(settings(rows, base), read_shapes(base))


def test_the_largest_batch_of_an_evaluation_is_that_of_the_loss(rows):
    """Its logits are those that the base really computes."""
    config = settings(rows, **{"data.validation": 0.5})
    counts = count_tokens(config, read_shapes("bundled"))
    base = load("bundled")
    data = load_data(config.data, base.tokenizer, seed=0, max_length=512)
    computed, inputs = [], []
    base.model.lm_head.register_forward_hook(lambda *call: computed.append(call[2].shape))
    table = base.model.get_input_embeddings()
    table.register_forward_hook(lambda *call: inputs.append(call[1][0].shape))
    logits = next(label_logits(base.model, data.validation)).logits
    assert (counts.evaluated.rows, counts.evaluated.longest) == inputs[-1]
    assert computed[-1] == (counts.evaluated.rows, counts.evaluated.positions, 2048)
    assert counts.evaluated.labels == len(logits)
