"""Forgetting: the loss on rows that the base knew before training."""

import json

import pytest
import torch

import lorica
from lorica.base import bundled
from lorica.base.load import load as load_base
from lorica.core.condition import is_conditioned
from lorica.data.example import Example
from lorica.errors import ConfigError, DataError
from lorica.evaluation.evaluate import evaluate
from lorica.evaluation.forgetting import (
    BeforeRows,
    before_settings,
    give_conditions,
    load_before_rows,
)
from lorica.evaluation.loss import score
from lorica.formats.save import save
from world.pretrain import DOMAIN_DOCUMENTS, write_domain


@pytest.fixture
def files(tmp_path):
    rows, before = tmp_path / "rows.jsonl", tmp_path / "before.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Tom {i}", "completion": " ran"}) + "\n" for i in range(6))
    )
    before.write_text(
        "".join(json.dumps({"text": f"Lily saw {i} big dogs."}) + "\n" for i in range(4))
    )
    return str(rows), str(before)


def test_the_domain_of_the_bundled_base_is_what_the_generator_writes(tmp_path):
    write_domain(tmp_path)
    assert (tmp_path / "domain.jsonl").read_bytes() == bundled.DOMAIN.read_bytes()


def test_the_bundled_base_knows_its_domain():
    base = load_base("bundled")
    config = before_settings("own", base)
    rows = load_before_rows(config, base)
    assert rows.source.startswith(f"{DOMAIN_DOCUMENTS} documents")
    assert not rows.notices
    assert 0.6 < score(base.model, rows.examples[:12]).loss < 1.1
    assert max(len(example.ids) for example in rows.examples) < 450, "room for virtual tokens"


def test_an_adapter_that_changes_the_base_forgets(small_base, tmp_path, files):
    rows, before = files
    base = load_base(str(small_base))
    lorica.adapt(base.model, lorica.Lora(r=4))
    with torch.no_grad():
        for parameter in base.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    save(base.model, tmp_path / "lora", base_path=str(small_base))
    report = evaluate(tmp_path / "lora", rows, exact_match=False, before=before)
    forgetting = report["forgetting_loss"]
    assert report.measures[-1] == forgetting and forgetting.rows == 4
    known = load_before_rows(before_settings(before, base), base)
    assert forgetting.adapter.value == pytest.approx(score(base.model, known.examples).loss)
    change = forgetting.adapter.value - forgetting.base.value
    assert forgetting.difference.value == pytest.approx(change) and change > 0
    assert "forgetting loss: on 4 rows of before.jsonl" in report.notices
    alone = evaluate(str(small_base), rows, exact_match=False, before=before)
    assert alone["forgetting_loss"].base == forgetting.base
    assert alone["forgetting_loss"].difference is None


def test_what_cannot_be_measured(small_base, tmp_path, files):
    rows, _ = files
    with pytest.raises(ConfigError, match="does not come with it") as caught:
        evaluate(str(small_base), rows, before="own")
    assert "--before FILE" in str(caught.value)
    labelled = tmp_path / "labelled.jsonl"
    labelled.write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    with pytest.raises(DataError, match="rows with classes"):
        evaluate(str(small_base), rows, before=str(labelled))


def test_rows_get_the_conditions_of_the_measured_rows_in_turn(monkeypatch):
    measured = [Example([1, 2], [False, True], "m", condition=c) for c in ("b", "a", "b")]
    before = BeforeRows([Example([1, i], [False, True], "b") for i in range(3)], "3 rows of x")
    monkeypatch.setattr("lorica.evaluation.forgetting.is_conditioned", lambda model: True)
    loaded = type("Loaded", (), {"model": None})()
    given = give_conditions(before, loaded, measured)
    assert [example.condition for example in given.examples] == ["a", "b", "a"]
    assert given.source == "3 rows of x, under the conditions in turn"
    own = BeforeRows(measured, "3 rows of x")
    assert give_conditions(own, loaded, measured) is own
    assert not is_conditioned(torch.nn.Linear(1, 1))
    monkeypatch.undo()
    assert give_conditions(before, load_base("bundled"), measured) is before
