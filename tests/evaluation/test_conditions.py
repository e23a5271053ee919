"""Rows under their own conditions, and under others': scores, answers, chat, named lines."""

import json

import pytest
import torch

import lorica
from lorica.base.load import load as load_base
from lorica.core.condition import describe, given, informed, set_conditions
from lorica.data.batch import pad
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.errors import ConfigError, DataError
from lorica.evaluation.loss import score
from lorica.evaluation.measure import evaluate_loaded
from lorica.evaluation.report import evaluate
from lorica.generation.chat import Chat
from lorica.generation.generate import generate
from lorica.generation.sampling import Sampling
from lorica.methods.hyperlora import Hyperlora
from tests.laws.bases import move

WORDS = {"cat": " likes milk.", "dog": " likes bones."}
NAMES = ["Tom", "Lily", "Ben", "Mia", "Sam", "Anna", "Max", "Lucy"]


def told(count=12):
    """Only the condition tells what the answer is."""
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


def taught(stories, examples=None, **settings):
    """stories260K with a HyperLoRA; trained on `examples` if they are given."""
    base = load_base(str(stories))
    method = Hyperlora(r=4, latent=32, hidden=8, conditions=tuple(WORDS), **settings)
    lorica.adapt(base.model, method)
    if examples is None:
        move(base.model, size=0.1)
        return base
    learned = [p for p in base.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=5e-3)
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
def test_a_report_on_rows_that_need_their_condition(stories, rows):
    path = rows(told())
    base = taught(stories, examples_of(path, load_base(str(stories))))
    report = evaluate_loaded(base, examples_of(path, base), max_new_tokens=12)
    assert [sample.adapter.startswith(sample.wanted) for sample in report.samples] == [True] * 4
    tokens = [sum(e.learned) for e in examples_of(path, base)]
    right = 1 - len(tokens) / sum(tokens)  # this base cannot end a text: all but the last token
    assert report["token_accuracy"].adapter.value == pytest.approx(right)
    (line,) = [line for line in report.notices if "conditions of other rows" in line]
    assert "the condition is used" in line and "not shown" not in line
    with pytest.raises(ConfigError, match="none is set"):
        base.model(torch.ones(1, 3, dtype=torch.long))


def test_an_unused_condition_is_seen(stories, rows):
    """One whose network makes the same adapter for every condition."""
    base = taught(stories)
    network = next(m for m in base.model.modules() if type(m).__name__ == "Network")
    with torch.no_grad():
        network.enc.vectors.weight.copy_(
            network.enc.vectors.weight[:1].expand_as(network.enc.vectors.weight)
        )
    report = evaluate_loaded(base, examples_of(rows(told(8)), base), exact_match=False)
    (line,) = [line for line in report.notices if "conditions of other rows" in line]
    assert "not shown" in line


def test_scores_do_not_depend_on_the_company(stories, rows):
    base = taught(stories)
    examples = examples_of(rows(told(12)), base)
    together = score(base.model, examples, batch=12).nll
    alone = [score(base.model, [example]).nll[0] for example in examples]
    assert together == pytest.approx(alone, rel=1e-5)
    kinds = [e.condition for e in examples]
    one = [score(base.model, [e for e in examples if e.condition == k]).nll for k in WORDS]
    places = [[i for i, k in enumerate(kinds) if k == kind] for kind in WORDS]
    for found, where in zip(one, places, strict=True):
        assert found == pytest.approx(together[where], rel=1e-5)


def test_rows_without_the_condition_that_is_needed(stories, rows):
    plain = [{k: v for k, v in row.items() if k != "condition"} for row in told(4)]
    base = taught(stories)
    with pytest.raises(DataError, match="the rows have none") as error:
        evaluate_loaded(base, examples_of(rows(plain), base))
    assert "data.columns" in error.value.fix


def test_rows_with_a_condition_that_is_not_used(stories, rows):
    path = rows(told(4))
    base = load_base(str(stories))
    lorica.adapt(base.model, lorica.Lora(r=2))
    move(base.model, size=0.1)
    lines = evaluate_loaded(base, examples_of(path, base), exact_match=False).notices
    assert any("not used: cat, dog" in line for line in lines)
    lines = evaluate(str(stories), path, exact_match=False).notices
    assert any("not used: cat, dog" in line for line in lines)


def test_an_unseen_condition_in_the_rows(stories, rows):
    base = taught(stories)
    strange = [{**told(1)[0], "condition": "cow"}]
    with pytest.raises(ConfigError, match="'cow'"):
        evaluate_loaded(base, examples_of(rows(strange), base))


def test_generation_takes_a_condition_of_each_prompt_or_one_for_all(stories):
    base = taught(stories)
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


def test_generation_refuses_what_it_cannot_use(stories):
    base = taught(stories)
    with pytest.raises(ConfigError, match="none is set") as error:
        generate(base, ["Tom"])
    assert "--condition" in error.value.fix
    with pytest.raises(ConfigError, match="2 conditions were given for 3 prompts"):
        generate(base, ["a", "b", "c"], conditions=["cat", "dog"])
    with pytest.raises(ConfigError, match="'cow'"):
        generate(base, ["Tom"], conditions=["cow"])
    with pytest.raises(ConfigError, match="takes no condition"):
        generate(load_base(str(stories)), ["Tom"], conditions=["cat"])


def test_chat_under_a_condition(stories):
    base = taught(stories)
    short = Sampling(max_new_tokens=12)
    answers = [Chat(base, condition=k, sampling=short).answer("Once upon a time") for k in WORDS]
    assert answers[0] != answers[1]
    assert (
        answers[0]
        == generate(base, ["Once upon a time"], conditions=["cat"], max_new_tokens=12).texts[0]
    )
    with pytest.raises(ConfigError, match="'cow'"):
        Chat(base, condition="cow").answer("Once")


def test_texts_are_read_before_they_are_needed(stories, rows):
    base = load_base(str(stories))
    method = informed(Hyperlora(r=2, condition="text"), base.model, list(WORDS))
    lorica.adapt(base.model, method)
    assert describe(base.model, base.tokenizer) == []
    move(base.model, size=0.2)
    new = [{**row, "condition": f"a {row['condition']}"} for row in told(4)]
    lines = evaluate_loaded(base, examples_of(rows(new), base), exact_match=False).notices
    assert any("not trained on" in line and "a cat" in line for line in lines)
    done = generate(base, ["Tom"], max_new_tokens=4, conditions=["a cow"])
    assert any("a cow" in line for line in done.notices)
    with given(base.model, ["a cow"]):
        assert base.model(torch.ones(1, 3, dtype=torch.long)).logits.isfinite().all()
