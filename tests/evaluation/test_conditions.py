"""Rows under their own conditions and those of others: scores, answers, chat, notices."""

import json

import pytest
import torch

import lorica
from lorica.base.condition_texts import encode_conditions
from lorica.base.load import load as load_base
from lorica.core.condition import set_conditions, with_conditions
from lorica.core.site import hidden_size_of
from lorica.data.batch import pad
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.errors import ConfigError, DataError
from lorica.evaluation.evaluate import evaluate
from lorica.evaluation.loss import score
from lorica.evaluation.measure import evaluate_loaded
from lorica.generation.chat import Chat
from lorica.generation.generate import generate
from lorica.generation.sampling import Sampling
from lorica.methods.hyperlora import Hyperlora
from tests.laws.bases import move

WORDS = {"cat": " likes milk.", "dog": " likes bones."}
NAMES = ["Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Lucy"]


def rows_with_conditions(count=12):
    """The answer follows from the condition alone."""
    kinds = list(WORDS)
    return [
        {
            "prompt": f"{NAMES[i % 8]} has a pet, number {i}. It",
            "completion": WORDS[kinds[i * 7 % 3 % 2]],
            "condition": kinds[i * 7 % 3 % 2],
        }
        for i in range(count)
    ]


@pytest.fixture
def rows(tmp_path):
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(map(json.dumps, rows)))
        return str(path)

    return write


def conditioned_base(small_base, examples=None, **settings):
    """A small base with a HyperLoRA; trained on `examples` if they are given."""
    base = load_base(str(small_base))
    method = Hyperlora(r=4, latent=32, hidden=8, conditions=tuple(WORDS), **settings)
    lorica.adapt(base.model, method)
    if examples is None:
        move(base.model, size=0.1)
        return base
    trainable = [p for p in base.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-3)
    batch = pad(examples, 0)
    for _ in range(12):
        set_conditions(base.model, batch.conditions)
        logits = base.model(batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1)[batch.label_positions], batch.targets
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    set_conditions(base.model, None)
    return base


def examples_of(path, base):
    config = DataConfig(path=path, validation=0)
    return load_data(config, base.tokenizer, seed=0, max_length=None, texts=True).train


@pytest.mark.slow
def test_a_report_shows_that_the_condition_is_used(small_base, rows):
    path = rows(rows_with_conditions())
    base = conditioned_base(small_base, examples_of(path, load_base(str(small_base))))
    report = evaluate_loaded(base, examples_of(path, base), max_new_tokens=12)
    assert [sample.adapter.startswith(sample.wanted) for sample in report.samples] == [True] * 4
    assert report["token_accuracy"].verdict == "better"
    (notice,) = [n for n in report.notices if "conditions of other rows" in n]
    assert "the condition is used" in notice and "not shown" not in notice
    with pytest.raises(ConfigError, match="none is set"):
        base.model(torch.ones(1, 3, dtype=torch.long))


def test_a_report_shows_that_the_condition_is_not_used(small_base, rows):
    """The network makes the same adapter for every condition."""
    base = conditioned_base(small_base)
    network = next(m for m in base.model.modules() if type(m).__name__ == "Network")
    with torch.no_grad():
        network.enc.vectors.weight.copy_(
            network.enc.vectors.weight[:1].expand_as(network.enc.vectors.weight)
        )
    report = evaluate_loaded(
        base, examples_of(rows(rows_with_conditions(8)), base), exact_match=False
    )
    (notice,) = [n for n in report.notices if "conditions of other rows" in n]
    assert "not shown" in notice


def test_scores_do_not_depend_on_the_batch(small_base, rows):
    base = conditioned_base(small_base)
    examples = examples_of(rows(rows_with_conditions(12)), base)
    together = score(base.model, examples, batch=12).nll
    alone = [score(base.model, [example]).nll[0] for example in examples]
    assert together == pytest.approx(alone, rel=1e-5)
    kinds = [e.condition for e in examples]
    by_kind = [score(base.model, [e for e in examples if e.condition == k]).nll for k in WORDS]
    places = [[i for i, k in enumerate(kinds) if k == kind] for kind in WORDS]
    for scores, row_numbers in zip(by_kind, places, strict=True):
        assert scores == pytest.approx(together[row_numbers], rel=1e-5)


def test_rows_without_a_needed_condition_are_refused(small_base, rows):
    plain = [{k: v for k, v in row.items() if k != "condition"} for row in rows_with_conditions(4)]
    base = conditioned_base(small_base)
    with pytest.raises(DataError, match="the rows have none") as error:
        evaluate_loaded(base, examples_of(rows(plain), base))
    assert "data.columns" in error.value.fix


def test_a_notice_names_conditions_that_are_not_used(small_base, rows):
    path = rows(rows_with_conditions(4))
    base = load_base(str(small_base))
    lorica.adapt(base.model, lorica.Lora(r=2))
    move(base.model, size=0.1)
    lines = evaluate_loaded(base, examples_of(path, base), exact_match=False).notices
    assert any("not used: cat, dog" in line for line in lines)
    lines = evaluate(str(small_base), path, exact_match=False).notices
    assert any("not used: cat, dog" in line for line in lines)


def test_an_unknown_condition_in_the_rows_is_refused(small_base, rows):
    base = conditioned_base(small_base)
    unknown = [{**rows_with_conditions(1)[0], "condition": "cow"}]
    with pytest.raises(ConfigError, match="'cow'"):
        evaluate_loaded(base, examples_of(rows(unknown), base))


def test_generation_uses_one_condition_per_prompt_or_one_for_all(small_base):
    base = conditioned_base(small_base)
    prompts = ["Once upon a time", "Tom", "Lily and her mom went to the big park. They"]
    kinds = ["cat", "dog", "cat"]
    mixed = generate(base, prompts, max_new_tokens=12, conditions=kinds)
    for prompt, kind, text in zip(prompts, kinds, mixed.texts, strict=True):
        alone = generate(base, [prompt], max_new_tokens=12, conditions=[kind])
        assert alone.texts == [text]
    assert generate(base, prompts, max_new_tokens=12, conditions=kinds, batch_size=2).texts == (
        mixed.texts
    )
    cats = generate(base, prompts, max_new_tokens=12, conditions=["cat"])
    assert cats.texts[0] == mixed.texts[0] and cats.texts[1] != mixed.texts[1]


def test_generation_refuses_unusable_conditions(small_base):
    base = conditioned_base(small_base)
    with pytest.raises(ConfigError, match="none is set") as error:
        generate(base, ["Tom"])
    assert "--condition" in error.value.fix
    with pytest.raises(ConfigError, match="2 conditions were given for 3 prompts"):
        generate(base, ["a", "b", "c"], conditions=["cat", "dog"])
    with pytest.raises(ConfigError, match="'cow'"):
        generate(base, ["Tom"], conditions=["cow"])
    with pytest.raises(ConfigError, match="takes no condition"):
        generate(load_base(str(small_base)), ["Tom"], conditions=["cat"])


def test_chat_under_a_condition(small_base):
    base = conditioned_base(small_base)
    short = Sampling(max_new_tokens=12)
    answers = [Chat(base, condition=k, sampling=short).answer("Once upon a time") for k in WORDS]
    assert answers[0] != answers[1]
    assert (
        answers[0]
        == generate(base, ["Once upon a time"], conditions=["cat"], max_new_tokens=12).texts[0]
    )
    with pytest.raises(ConfigError, match="'cow'"):
        Chat(base, condition="cow").answer("Once")


def test_conditions_in_words_are_encoded_before_use(small_base, rows):
    base = load_base(str(small_base))
    method = Hyperlora(r=2, condition="text").for_conditions(
        list(WORDS), hidden_size_of(base.model)
    )
    lorica.adapt(base.model, method)
    assert encode_conditions(base.model, base.tokenizer) == []
    move(base.model, size=0.2)
    new = [{**row, "condition": f"a {row['condition']}"} for row in rows_with_conditions(4)]
    lines = evaluate_loaded(base, examples_of(rows(new), base), exact_match=False).notices
    assert any("not trained on" in line and "a cat" in line for line in lines)
    generation = generate(base, ["Tom"], max_new_tokens=4, conditions=["a cow"])
    assert any("a cow" in notice for notice in generation.notices)
    with with_conditions(base.model, ["a cow"]):
        assert base.model(torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all()
