"""Updates of full rank as LoRA of a chosen rank: truncated, and the error measured."""

import copy

import pytest
import torch

import lorica
from lorica import Dora, Full
from lorica.core.bank import adapted_layers
from lorica.errors import ConfigError, MergeError
from lorica.formats.low_rank import low_rank_update, truncated
from tests.formats.exports import adapted, config_of, logits, near
from tests.laws.bases import gpt2, move, small_llama


def test_an_update_of_full_rank_is_refused_with_two_fixes(tmp_path):
    for kind in (Dora, Full):
        model = move(lorica.adapt(small_llama(), kind()))
        with pytest.raises(MergeError, match="full rank") as error:
            lorica.export_lora(model, tmp_path / "out")
        assert "lorica merge" in error.value.fix and "--rank" in error.value.fix
        assert "layers.0" in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_chosen_rank_is_measured(tmp_path):
    model = adapted(kind=Dora)
    want, bare = logits(model), logits(small_llama())
    seen = []
    for rank in (1, 8, 64):
        report = lorica.export_lora(model, tmp_path / str(rank), rank=rank)
        assert not report.exact and max(report.ranks.values()) <= rank
        fresh = small_llama()
        lorica.load(fresh, tmp_path / str(rank))
        seen.append((max(report.errors.values()), report.kl, (logits(fresh) - want).abs().max()))
        assert any(f"{report.lost:.2%}" in line for line in report.notices)
    assert seen[0] > seen[1] > seen[2]
    assert all(a > b for a, b in zip(seen[0], seen[2], strict=True))
    near(logits(fresh), want)
    assert (want - bare).abs().max() > 1e-2


def test_the_error_of_a_layer_is_the_share_of_its_update_that_is_lost(tmp_path):
    model = adapted(kind=Dora, target_modules=["down_proj"])
    report = lorica.export_lora(model, tmp_path / "out", rank=3)
    fresh, merged, cut = small_llama(), copy.deepcopy(model), small_llama()
    lorica.merge(merged)
    lorica.load(cut, tmp_path / "out")
    lorica.merge(cut)
    for site, error in report.errors.items():
        base, want, got = (m.get_submodule(site).weight for m in (fresh, merged, cut))
        lost = ((want - got).norm() / (want - base).norm()).item()
        assert lost == pytest.approx(error, rel=1e-3) and 0 < error < 1


def test_full_fine_tuning_is_truncated_and_its_norms_are_saved(tmp_path):
    model = move(lorica.adapt(small_llama(), Full()), size=0.01)
    want = logits(model)
    report = lorica.export_lora(model, tmp_path / "out", rank=64)
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "out")
    torch.testing.assert_close(logits(fresh), want, atol=1e-4, rtol=1e-4)
    saved = config_of(tmp_path / "out")["modules_to_save"]
    assert {name.rpartition(".")[2] for name in saved} == {
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
    }
    assert "model.embed_tokens" in report.ranks


def test_biases_and_an_embedding_together_are_refused(tmp_path):
    model = move(lorica.adapt(gpt2(), Full()))
    with pytest.raises(MergeError, match=r"biases, and transformer\.wte"):
        lorica.export_lora(model, tmp_path / "out", rank=4)


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_1_is_refused(rank, tmp_path):
    with pytest.raises(ConfigError, match=f"rank is {rank}"):
        lorica.export_lora(small_llama(), tmp_path / "out", rank=rank)


def test_truncation_of_a_small_matrix():
    """diag(4, 3, 0) of rank 1 is diag(4, 0, 0): 3 of the norm 5 is lost."""
    a, b, error = truncated(torch.diag(torch.tensor([4.0, 3.0, 0.0])), 1)
    assert (a.shape, b.shape) == ((1, 3), (3, 1))
    torch.testing.assert_close(b @ a, torch.diag(torch.tensor([4.0, 0.0, 0.0])))
    assert error == pytest.approx(0.6)
    a, b, error = truncated(torch.diag(torch.tensor([4.0, 3.0, 0.0])), 3)
    assert len(a) == 2 and error == 0  # the third singular value is 0
    a, b, error = truncated(torch.zeros(2, 3), 2)
    assert (a.shape, b.shape, error) == ((0, 3), (2, 0), 0.0)


def test_a_rank_below_that_of_the_factors_truncates_them():
    model = adapted(target_modules=["q_proj"])
    _, module, adapters = next(adapted_layers(model))
    truncated_update = low_rank_update(adapters.as_site(module), adapters["default"], 2)
    full_update = low_rank_update(adapters.as_site(module), adapters["default"], None)
    assert (
        (truncated_update.r, full_update.r) == (2, 4)
        and 0 < truncated_update.error < 1
        and full_update.error == 0
    )
    assert low_rank_update(adapters.as_site(module), adapters["default"], 9).r == 4
