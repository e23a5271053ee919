"""Weighted sums of adapters: against weights that are summed by hand."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica import Lora, cli
from lorica.core.adapter import Method
from lorica.core.sums import summed
from lorica.data.prompt_format import PromptFormat
from lorica.errors import BaseError, ConfigError, MergeError
from lorica.methods.hyperlora import Hyperlora
from tests.formats.exports import adapted, logits
from tests.laws.bases import CASES, move, small_llama, trained
from tests.marks import slow_but

LLAMA = next(case for case in CASES if case.name == "llama")
METHODS = [name for name in Method.names() if name != "hyperlora"]
SETTINGS = {
    "plain": {},
    "scale": {"alpha": 5},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}},
    "few layers": {"target_modules": ["q_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
}


def saved(model: nn.Module, path: Path) -> Path:
    return Path(lorica.save(model, path))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a model whose adapter is merged."""
    lorica.merge(model)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def weights_of(path: Path) -> dict[str, Tensor]:
    model = small_llama()
    lorica.load(model, path)
    return weights(model)


def by_hand(parts: list[tuple[Path, float]]) -> dict[str, Tensor]:
    bare = small_llama().state_dict()
    changed = [(weights_of(path), weight) for path, weight in parts]
    return {
        name: tensor + sum(weight * (new[name] - tensor) for new, weight in changed)
        for name, tensor in bare.items()
    }


def near(got: dict[str, Tensor], want: dict[str, Tensor], atol: float = 1e-6) -> None:
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("name", slow_but(("lora", "dora", "full", "prefix_tuning"), METHODS))
def test_the_weights_of_every_method_are_summed(name: str, base: str, tmp_path: Path):
    kind = Method.named(name).to_lora
    parts = [
        (saved(trained(name, LLAMA, seed), tmp_path / str(seed)), weight)
        for seed, weight in ((1, 0.7), (2, -0.3))
    ]
    if kind == "never":
        with pytest.raises(MergeError, match="cannot be written as a change of weights"):
            lorica.combine(parts, tmp_path / "out", base=base, rank=8)
        assert not (tmp_path / "out").exists()
        return
    if name == "full":  # it trains norms as well
        with pytest.raises(MergeError, match="trained whole"):
            lorica.combine(parts, tmp_path / "out", base=base, rank=8)
        return
    if kind == "approximate":
        with pytest.raises(MergeError, match="full rank"):
            lorica.combine(parts, tmp_path / "out", base=base)
    rank = None if kind == "exact" else 64
    report = lorica.combine(parts, tmp_path / "out", base=base, rank=rank)
    near(weights_of(tmp_path / "out"), by_hand(parts))
    assert report.max_effect > 1e-3 and not (kind == "exact" and any(report.errors.values()))


@pytest.mark.parametrize("case", slow_but(("patterns", "embedding"), SETTINGS))
def test_a_scale_a_pattern_and_other_layers_are_in_the_sum(case: str, base: str, tmp_path: Path):
    first = saved(adapted(**SETTINGS[case]), tmp_path / "a")
    second = saved(move(lorica.adapt(small_llama(), Lora(r=2)), seed=3), tmp_path / "b")
    parts = [(first, 0.5), (second, 2.0)]
    lorica.combine(parts, tmp_path / "out", base=base)
    near(weights_of(tmp_path / "out"), by_hand(parts))
    lorica.combine(parts, tmp_path / "cat", base=base, method="cat")
    near(weights_of(tmp_path / "cat"), by_hand(parts))


def test_a_lora_and_a_dora_are_summed(base: str, tmp_path: Path):
    parts = [
        (saved(trained("dora", LLAMA), tmp_path / "dora"), 0.5),
        (saved(adapted(use_rslora=True), tmp_path / "lora"), 0.5),
    ]
    report = lorica.combine(parts, tmp_path / "out", base=base, rank=64)
    near(weights_of(tmp_path / "out"), by_hand(parts))
    cut = lorica.combine(parts, tmp_path / "cut", base=base, rank=2)
    assert max(report.errors.values()) < 1e-5 < max(cut.errors.values())
    assert cut.lost > report.lost and set(cut.ranks.values()) <= {1, 2}
    assert any("the sum is cut" in line for line in cut.notices)


def test_full_fine_tuning_of_linear_layers_is_summed(base: str, tmp_path: Path):
    models = [
        move(lorica.adapt(small_llama(), lorica.Full(), target_modules=["v_proj"]), seed=seed)
        for seed in (1, 2)
    ]
    parts = [(saved(model, tmp_path / str(i)), 0.5) for i, model in enumerate(models)]
    lorica.combine(parts, tmp_path / "out", base=base, rank=64)
    near(weights_of(tmp_path / "out"), by_hand(parts))


def test_biases_are_summed(base: str, tmp_path: Path):
    models = [adapted(lora_bias=True, alpha=alpha) for alpha in (4, 9)]
    paths = [saved(model, tmp_path / str(i)) for i, model in enumerate(models)]
    lorica.combine([(path, 0.5) for path in paths], tmp_path / "out", base=base)
    got, want = weights_of(tmp_path / "out"), [weights(model) for model in models]
    assert any(name.endswith("q_proj.bias") for name in got)
    near(got, {name: (want[0][name] + want[1][name]) / 2 for name in want[0]})


def test_one_part_of_weight_1_is_that_part(base: str, tmp_path: Path):
    path = saved(adapted(use_rslora=True), tmp_path / "a")
    lorica.combine({path: 1.0}, tmp_path / "sum", base=base)
    lorica.export_lora(path, tmp_path / "export", base=base)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        got, want = (tmp_path / folder / name for folder in ("sum", "export"))
        assert got.read_bytes() == want.read_bytes()


@pytest.mark.parametrize(
    "method",
    slow_but(("linear", "dare_ties"), ("linear", "svd", "ties", "dare_linear", "dare_ties")),
)
def test_two_halves_of_one_adapter_are_it(method, base: str, tmp_path: Path):
    path = saved(adapted(use_rslora=True), tmp_path / "a")
    rank = None if method in ("linear", "svd") else 4
    halves = [(path, 0.5), (path, 0.5)]
    report = lorica.combine(
        halves, tmp_path / "out", base=base, method=method, density=1.0, rank=rank
    )
    near(weights_of(tmp_path / "out"), weights_of(path))
    assert set(report.ranks.values()) == {4} and report.cancelled < 1e-6


def test_negation_takes_a_task_away_and_what_cancels_is_noticed(base: str, tmp_path: Path):
    path = saved(adapted(), tmp_path / "a")
    lorica.combine({path: -1.0}, tmp_path / "minus", base=base)
    near(weights_of(tmp_path / "minus"), by_hand([(path, -1.0)]))
    parts = [(path, 1.0), (tmp_path / "minus", 0.9)]
    report = lorica.combine(parts, tmp_path / "out", base=base)
    assert report.cancelled == pytest.approx(1.8 / 1.9, rel=1e-3)
    assert any("opposite directions" in line for line in report.notices)


def test_another_prompt_format_is_noticed(base: str, tmp_path: Path):
    """The sum has that of the first: a server would write the prompts of the other one wrongly."""
    first, second = (
        lorica.save(adapted(), tmp_path / name, prompt_format=form)
        for name, form in (
            ("a", None),
            ("b", PromptFormat(kind="prompt", template="Q: {{ prompt }}")),
        )
    )
    report = lorica.combine({first: 0.5, second: 0.5}, tmp_path / "out", base=base)
    assert [n for n in report.notices if f"{second} was trained with another prompt format" in n]
    same = lorica.combine({first: 0.5}, tmp_path / "same", base=base)
    assert not [n for n in same.notices if "prompt format" in n]


def test_ties_keeps_the_largest_of_the_stronger_sign():
    parts = [torch.tensor([[4.0, -3.0, 0.1, 2.0]]), torch.tensor([[1.0, 5.0, -0.2, 0.1]])]
    draws = torch.Generator().manual_seed(0)
    got = summed("ties", parts, [1.0, 1.0], 0.5, draws)
    assert got.tolist() == [[5.0, 5.0, 0.0, 0.0]]
    got = summed("ties", parts, [1.0, 0.5], 1.0, draws)
    torch.testing.assert_close(got, torch.tensor([[4.5, -3.0, 0.0, 2.05]]))


def test_dare_keeps_the_mean():
    part = torch.full((200, 200), 3.0)
    draws = torch.Generator().manual_seed(0)
    got = summed("dare_linear", [part], [1.0], 0.25, draws)
    assert set(got.unique().tolist()) == {0.0, 12.0}
    assert got.mean().item() == pytest.approx(3.0, rel=0.05)
    again = summed("dare_linear", [part], [1.0], 0.25, torch.Generator().manual_seed(0))
    assert torch.equal(got, again)


def test_a_condition_and_layers_trained_whole_are_refused(base: str, tmp_path: Path):
    model = lorica.adapt(small_llama(), Hyperlora(r=3, conditions=("a", "b")))
    path = saved(move(model), tmp_path / "hyper")
    with pytest.raises(MergeError, match="for each condition"):
        lorica.combine({path: 1.0}, tmp_path / "out", base=base)
    path = saved(adapted(target_modules=["q_proj"], modules_to_save=["lm_head"]), tmp_path / "a")
    with pytest.raises(MergeError, match="trained whole") as raised:
        lorica.combine({path: 1.0}, tmp_path / "out", base=base)
    assert "lm_head" in str(raised.value) and not (tmp_path / "out").exists()


def test_adapters_of_different_bases_are_refused(base: str, tmp_path: Path):
    path = saved(adapted(), tmp_path / "a")
    other = small_llama()
    with torch.no_grad():
        other.get_parameter("model.layers.0.mlp.up_proj.weight").add_(0.1)
    changed = saved(move(lorica.adapt(other, Lora(r=4))), tmp_path / "b")
    with pytest.raises(BaseError):
        lorica.combine({path: 0.5, changed: 0.5}, tmp_path / "out", base=base)


@pytest.mark.parametrize(
    ("parts", "words", "message"),
    [
        ([], {}, "no adapter was named"),
        ([("a", float("nan"))], {}, "not a finite number"),
        ([("a", 0.0)], {}, "all weights are 0"),
        ([("a", 1.0)], {"rank": 0}, "rank is 0"),
        ([("a", 1.0)], {"method": "ties"}, "full rank"),
        ([("a", 1.0)], {"method": "slerp"}, "there is no method"),
        ([("a", 1.0)], {"density": 0.0}, "density is 0"),
        ([("a", 1.0)], {"method": "cat", "rank": 3}, "takes no rank"),
    ],
)
def test_what_cannot_be_meant_is_refused(parts, words, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        lorica.combine(parts, tmp_path / "out", **words)


def test_the_command(base: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    path = saved(adapted(), tmp_path / "a=1")
    words = ["combine", f"{path}=0.5", f"{path}=-0.1", "--base", base]
    assert cli.run([*words, "--output", str(tmp_path / "out")]) == 0
    assert "linear of 2 adapters: a plain LoRA" in capsys.readouterr().out
    near(weights_of(tmp_path / "out"), by_hand([(path, 0.4)]))
    assert cli.run(["combine", str(tmp_path), "--output", str(tmp_path / "no")]) == 2
    assert "write runs/mine=0.5" in capsys.readouterr().err


def test_the_logits_are_those_of_the_sum(base: str, tmp_path: Path):
    one, other = adapted(alpha=5), adapted(use_rslora=True, target_modules=["v_proj", "up_proj"])
    parts = [(saved(one, tmp_path / "a"), 0.3), (saved(other, tmp_path / "b"), 0.6)]
    lorica.combine(parts, tmp_path / "out", base=base)
    got, want = small_llama(), small_llama()
    lorica.load(got, tmp_path / "out")
    want.load_state_dict(by_hand(parts))
    torch.testing.assert_close(logits(got), logits(want), atol=1e-5, rtol=1e-5)
