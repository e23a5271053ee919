"""Every method as LoRA: exact, truncated or refused; conditions; quantised bases."""

import shutil

import pytest
import torch

import lorica
from lorica import Dora, Lora
from lorica.core.adapter import Method
from lorica.core.condition import with_conditions
from lorica.errors import ConfigError, MergeError
from lorica.formats.open_adapter import open_adapter
from lorica.methods.hyperlora import Hyperlora
from tests.formats.exports import adapted, logits, near
from tests.laws.bases import CASES, move, small_llama, trained
from tests.marks import slow_but


@pytest.mark.slow
def test_each_condition_is_exported_as_its_own_lora(story_base, tmp_path):
    model = small_llama()
    lorica.adapt(model, Hyperlora(r=3, conditions=("a", "b")), target_modules=["q_proj", "v_proj"])
    move(model)
    path = lorica.save(model, tmp_path / "in")
    with pytest.raises(MergeError, match="no single condition is set") as error:
        lorica.export_lora(model, tmp_path / "out")
    assert error.value.facts["known"] == "a, b" and "--condition" in (error.value.fix or "")
    with pytest.raises(MergeError, match="no single condition is set"):
        lorica.export_lora(model, tmp_path / "out", rank=2)
    seen = []
    for condition in ("a", "b"):
        report = lorica.export_lora(model, tmp_path / condition, condition=condition)
        assert (report.condition, set(report.ranks.values())) == (condition, {3})
        fresh = small_llama()
        lorica.load(fresh, tmp_path / condition)
        with with_conditions(model, [condition, condition]):
            near(logits(fresh), logits(model))
        seen.append(logits(fresh))
    assert (seen[0] - seen[1]).abs().max() > 1e-3
    small_llama().save_pretrained(tmp_path / "base")
    for file in story_base.glob("token*"):
        shutil.copy(file, tmp_path / "base")
    base = str(tmp_path / "base")
    again = lorica.export_lora(path, tmp_path / "from folder", condition="b", base=base)
    assert again.max_difference < 1e-4
    fresh = small_llama()
    lorica.load(fresh, tmp_path / "from folder")
    near(logits(fresh), seen[1])
    with pytest.raises(ConfigError):
        lorica.export_lora(model, tmp_path / "no", condition="c")
    with pytest.raises(ConfigError, match="takes no condition"):
        lorica.export_lora(adapted(), tmp_path / "no", condition="a")
    assert not (tmp_path / "no").exists()


LLAMA = next(case for case in CASES if case.name == "llama")
METHODS = [name for name in Method.names() if name != "hyperlora"]  # its conditions are above


@pytest.mark.parametrize("name", slow_but(("lora", "dora", "bottleneck"), METHODS))
def test_every_method_exports_as_it_declares(name, tmp_path):
    """Exact at once; of full rank only cut; or nothing that a weight can do."""
    model, kind = trained(name, LLAMA), Method.named(name).to_lora
    want = logits(model)
    if kind == "exact":
        report = lorica.export_lora(model, tmp_path / "out")
        assert report.exact and report.method == name and max(report.ranks.values()) > 0
        fresh = small_llama()
        lorica.load(fresh, tmp_path / "out")
        torch.testing.assert_close(logits(fresh), want, atol=5e-5, rtol=1e-5)
        assert (want - logits(small_llama())).abs().max() > 1e-3
        return
    with pytest.raises(MergeError, match="full rank" if kind == "approximate" else "is not a LoRA"):
        lorica.export_lora(model, tmp_path / "out")
    if kind == "never":
        with pytest.raises(MergeError, match="cannot be written as a change of weights"):
            lorica.export_lora(model, tmp_path / "out", rank=4)
        return
    cut = [lorica.export_lora(model, tmp_path / str(rank), rank=rank) for rank in (1, 8, 64)]
    lost = [max(report.errors.values()) for report in cut]
    assert lost[0] > lost[1] > lost[2] and cut[0].kl > cut[2].kl < 1e-8


@pytest.mark.parametrize(
    "name, reason",
    [
        ("prefix_tuning", "attends to"),
        ("prompt_tuning", "attends to"),
        ("llama_adapter", "attends to"),
        ("bottleneck", "not a linear function"),
    ],
)
def test_methods_that_have_no_weight_are_refused_with_the_reason(name, reason, tmp_path):
    with pytest.raises(MergeError, match=reason) as error:
        lorica.export_lora(trained(name, LLAMA), tmp_path / "out")
    assert name in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind, rank", [(Lora, None), (Dora, 64)])
def test_an_adapter_of_a_quantised_base(kind, rank, story_base, tmp_path):
    from lorica.base.load import load

    base = load(str(story_base), quantisation="nf4")
    move(lorica.adapt(base.model, kind(r=4), target_modules=["q_proj", "down_proj"]))
    lorica.save(base.model, tmp_path / "in", tokenizer=base.tokenizer)
    report = lorica.export_lora(tmp_path / "in", tmp_path / "out", rank=rank)
    assert report.max_difference < 1e-4 < report.max_effect
    again = open_adapter(tmp_path / "out")  # on the quantised base, as it was trained
    near(logits(again.model), logits(base.model))
    (line,) = lorica.load(load(str(story_base)).model, tmp_path / "out")
    assert "same but quantised" in line
