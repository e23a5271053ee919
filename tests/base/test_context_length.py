"""Positions and tokens that a base has not, and bases that read both ways, are found at load."""

import copy
import json
from pathlib import Path

import pytest
import torch
import transformers

import lorica
from lorica import cli
from lorica.base.causal import check_causal
from lorica.base.context_length import check_tokens, fit_padding, positions_of
from lorica.base.describe import context_length
from lorica.base.load import load
from lorica.base.model_view import config_view
from lorica.data.example import Example
from lorica.errors import BaseError, DataError
from tests.base.architectures import BASES, SIZE, tiny, tokenizer, write

BERT = {k: v for k, v in SIZE.items() if k not in ("bos_token_id", "eos_token_id")}
ENCODERS = {"Bert": BERT, "Roberta": {**BERT, "pad_token_id": 1}, "RoFormer": BERT, "Electra": BERT}
OWN = len(tokenizer())
"""Tokens of the base's tokenizer, and rows of its embedding."""
TABLES = {  # kind -> (settings, tokens of the longest row)
    "Bert": ({**BERT, "pad_token_id": 0}, 96),
    "Roberta": ({**BERT, "pad_token_id": 1}, 94),
    "XLMRoberta": ({**BERT, "pad_token_id": 1}, 94),
    "MPNet": ({**BERT, "pad_token_id": 1}, 94),
    "OPT": (BASES["opt"][1], 96),
    "BioGpt": ({**SIZE, "pad_token_id": 1}, 96),
    "GPT2": (BASES["gpt2"][1], 96),
    "CTRL": (BASES["ctrl"][1], 96),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_that_reads_both_ways_is_refused(kind, dtype):
    config = getattr(transformers, f"{kind}Config")(**ENCODERS[kind])
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval()
    for parameter in model.parameters():
        parameter.data.mul_(4 if parameter.ndim > 1 else 1)
    with pytest.raises(BaseError, match="attends in both directions") as error:
        check_causal(model, "here")
    assert "is_decoder" in str(error.value)
    config.is_decoder = True
    check_causal(transformers.AutoModelForCausalLM.from_config(config).to(dtype).eval(), "here")


@pytest.mark.parametrize("name", BASES)
def test_bases_that_read_from_left_to_right_are_taken(name):
    for dtype in (torch.float32, torch.bfloat16)[: 2 if name in ("llama", "mixtral") else 1]:
        check_causal(tiny(name).to(dtype), name)


def test_it_is_refused_where_it_is_loaded(tmp_path):
    config = transformers.BertConfig(**BERT)
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(BaseError, match="attends in both directions"):
        load(str(tmp_path))


@pytest.mark.parametrize("kind", TABLES)
def test_positions_are_counted_as_the_base_counts_them(kind):
    """A row of that many tokens runs, and one more does not."""
    settings, most = TABLES[kind]
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = transformers.AutoModel.from_config(config).eval()
    assert positions_of(config, model) == most
    model(torch.full((1, most), 7))
    if kind != "CTRL":  # its table of angles is sliced without a word
        with pytest.raises((IndexError, RuntimeError)):
            model(torch.full((1, most + 1), 7))


def test_configs_without_a_limit():
    assert config_view(transformers.XLNetConfig()).max_length is None
    assert config_view(transformers.MambaConfig()).max_length is None
    assert config_view(tiny("llama_dynamic").config).max_length == 96  # 24, four times as far
    assert config_view(tiny("mpt").config).max_length == 96


def test_the_limit_is_known_before_weights_are_read(tmp_path):
    config = transformers.RobertaConfig(**{**BERT, "pad_token_id": 1})
    transformers.RobertaForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    assert context_length(str(tmp_path)) == 94


def base_of(folder: Path) -> Path:
    """A base whose tokenizer has two tokens that the embedding has not, one of them for padding."""
    write(folder, "llama", vocab_size=OWN)
    more = transformers.AutoTokenizer.from_pretrained(folder)
    more.add_tokens(["<new>"])
    more.add_special_tokens({"pad_token": "<pad>"})
    more.save_pretrained(folder)
    return folder


def rows(path: Path, text: str) -> str:
    lines = [{"prompt": "the cat" * (1 + i), "completion": text} for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_a_token_beyond_the_embedding_is_named_before_training(tmp_path, capsys):
    base, data = base_of(tmp_path / "base"), rows(tmp_path / "rows.jsonl", " sat <new>")
    run = {
        "base": str(base),
        "data": {"path": data, "validation": 0},
        "max_steps": 1,
        "output": str(tmp_path / "run"),
        "show": False,
    }
    for work in (
        lambda: lorica.train(**run),
        lambda: lorica.evaluate(str(base), {"path": data}),
    ):
        with pytest.raises(DataError, match="tokens that the base has no embedding of") as error:
            work()
        assert f"'<new>' ({OWN})" in str(error.value)
    assert cli.run(["check", "--base", str(base), "--data", data]) == 3
    assert f"'<new>' ({OWN})" in capsys.readouterr().out


def test_a_padding_token_beyond_the_embedding_is_replaced_and_said(tmp_path):
    """It is never read: any token of the base will do, in training, evaluation and generation."""
    base, data = base_of(tmp_path / "base"), rows(tmp_path / "rows.jsonl", " sat")
    done = lorica.train(
        base=str(base),
        data={"path": data, "validation": 0},
        max_steps=1,
        output=str(tmp_path / "run"),
        show=False,
    )
    assert any(f"the padding token '<pad>' is number {OWN + 1}" in line for line in done.notices)
    report = lorica.evaluate(str(tmp_path / "run"), {"path": data}, exact_match=False)
    assert report["loss"].base.value > 0
    assert not any("<pad>" in line and "cannot be used" in line for line in report.notices)
    found = load(str(base))
    assert found.tokenizer.pad_token_id < OWN


def test_tokens_are_checked_by_row():
    some = [Example([3, 9], [True] * 2, "row 1"), Example([3, 10, 11], [True] * 3, "row 2")]
    check_tokens(some, tokenizer(), 12)
    check_tokens(some, tokenizer(), None)
    with pytest.raises(DataError, match="1 rows have tokens") as error:
        check_tokens(some, tokenizer(), 10)
    assert "row 2" in str(error.value) and "row 1" not in str(error.value)


def test_a_tokenizer_that_fits_is_left_as_it_is():
    made = copy.deepcopy(tokenizer())
    before = made.pad_token_id, made.get_vocab()
    assert fit_padding(tiny("llama"), made) == []
    assert (made.pad_token_id, made.get_vocab()) == before
