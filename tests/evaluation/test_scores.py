"""Scores of rows, against transformers' own loss: language models and classifiers, any batch."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import lorica
from lorica.base.load import load as load_base
from lorica.data.example import Example
from lorica.errors import DataError, TrainingError
from lorica.evaluation import loss as loss_module
from lorica.evaluation.loss import mean_loss, score
from tests import small_base
from tests.small_base import VOCABULARY


def examples(count=13, vocabulary=VOCABULARY):
    """Rows of 2 to 40 tokens, with labels at any position."""
    generator = np.random.default_rng(0)
    rows = []
    for i in range(count):
        ids = generator.integers(3, vocabulary, int(generator.integers(2, 40))).tolist()
        learned = [False, *(generator.random(len(ids) - 1) < 0.6).tolist()]
        learned[-1] = True
        rows.append(Example(ids, learned, f"row:{i}"))
    return rows


@torch.no_grad()
def by_transformers(model, rows):
    """Loss and label tokens of each row alone, by transformers' own shifted cross-entropy."""
    losses = []
    for row in rows:
        labels = [i if learned else -100 for i, learned in zip(row.ids, row.learned, strict=True)]
        out = model(input_ids=torch.tensor([row.ids]), labels=torch.tensor([labels]))
        losses.append(out.loss.item() * sum(row.learned))
    return np.array(losses)


@pytest.fixture(scope="module")
def model(small_base):
    return load_base(str(small_base)).model


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_scores_equal_the_loss_of_each_row_in_transformers(model, batch):
    rows = examples()
    scores = score(model, rows, batch=batch)
    np.testing.assert_allclose(scores.nll, by_transformers(model, rows), rtol=1e-5)
    assert scores.tokens.tolist() == [sum(row.learned) for row in rows]
    assert scores.loss == pytest.approx(scores.nll.sum() / scores.tokens.sum())
    assert mean_loss(model, rows) == pytest.approx(scores.loss)


def test_correct_counts_labels_that_are_the_first_choice(model):
    rows = examples()
    scores = score(model, rows)
    for row, correct in zip(rows, scores.correct, strict=True):
        with torch.no_grad():
            first = model(input_ids=torch.tensor([row.ids])).logits[0].argmax(-1).tolist()
        hits = [row.learned[t] and first[t - 1] == row.ids[t] for t in range(1, len(row.ids))]
        assert correct == sum(hits)


def test_a_model_without_logits_to_keep_and_one_with_learned_positions(model, monkeypatch):
    rows = examples()
    expected = score(model, rows).nll
    old = type(model).forward

    def forward(self, input_ids, attention_mask=None, use_cache=None):
        return old(self, input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    monkeypatch.setattr(type(model), "forward", forward)
    np.testing.assert_allclose(score(model, rows).nll, expected, rtol=1e-5)
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    ).eval()
    np.testing.assert_allclose(score(gpt2, rows).nll, by_transformers(gpt2, rows), rtol=1e-5)


def test_small_batches_and_chunks_give_the_same(model, monkeypatch):
    rows = examples()
    expected = score(model, rows).nll
    monkeypatch.setattr(loss_module, "MAX_LOGITS", VOCABULARY * 50)
    monkeypatch.setattr(loss_module, "MAX_FLOAT32", VOCABULARY * 3)
    np.testing.assert_allclose(score(model, rows).nll, expected, rtol=1e-5)


def test_the_logits_of_a_long_row_are_computed_in_pieces(model, monkeypatch):
    """No more than MAX_LOGITS at a time, and each row scores what it scores whole."""
    ids = torch.randint(3, VOCABULARY, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [*examples(3), Example(ids, [False] + [True] * 39, "row:long")]
    expected = score(model, rows)
    computed = []
    handle = model.lm_head.register_forward_hook(lambda *call: computed.append(call[2].numel()))
    monkeypatch.setattr(loss_module, "MAX_LOGITS", VOCABULARY * 16)
    pieces = score(model, rows)
    handle.remove()
    assert max(computed) <= VOCABULARY * 16
    np.testing.assert_allclose(pieces.nll, expected.nll, rtol=1e-5)
    np.testing.assert_array_equal(pieces.tokens, expected.tokens)
    np.testing.assert_array_equal(pieces.correct, expected.correct)


def test_a_row_without_labels_is_ignored_and_only_such_rows_are_an_error(model):
    blank = Example([5, 6, 7], [False] * 3, "row:blank")
    scores = score(model, [blank, *examples(3)])
    assert (scores.nll[0], scores.tokens[0]) == (0, 0)
    with pytest.raises(DataError, match="has a label"):
        score(model, [blank])


def test_a_loss_that_is_not_finite_names_its_row(small_base):
    model = load_base(str(small_base)).model
    rows = [
        Example([1, 9, 20], [False, True, True], "row:a"),
        Example([1, 300, 20], [False, True, True], "row:b"),
    ]
    model.model.embed_tokens.weight[300] = float("nan")  # tied: the head has it as well
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.nan_to_num().clone())
    with pytest.raises(TrainingError, match="1 of 2 rows") as caught:
        score(model, rows)
    assert caught.value.facts["rows"] == "row:b"


def test_modes_and_random_state_are_unchanged(small_base):
    model = load_base(str(small_base)).model
    lorica.adapt(model, lorica.Lora(r=2, dropout=0.5))
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first, second = (score(model, examples(4)).nll for _ in range(2))
    assert np.array_equal(first, second)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_a_classifier_scores_rows(small_base):
    base = load_base(str(small_base), labels=["bad", "good", "fair"])
    rows = [
        Example(row.ids, [False] * len(row.ids), row.where, i % 3)
        for i, row in enumerate(examples(7))
    ]
    scores = score(base.model, rows, batch=3)
    for row, nll, hit in zip(rows, scores.nll, scores.correct, strict=True):
        with torch.no_grad():
            logits = base.model(input_ids=torch.tensor([row.ids])).logits[0]
        assert nll == pytest.approx(-logits.log_softmax(-1)[row.label].item(), rel=1e-4)
        assert hit == (logits.argmax().item() == row.label)
    assert scores.tokens.tolist() == [1] * 7


def test_a_weight_that_is_not_finite_is_named():
    model = small_base.model()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    row = Example([5, 6, 7], [False, True, True], "row 1")
    with pytest.raises(TrainingError) as error:
        score(model, [row])
    assert error.value.facts["weights_that_are_not_finite"] == "model.layers.1.mlp.up_proj.weight"
    assert error.value.fix is not None and "download the base again" in error.value.fix
