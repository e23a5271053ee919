"""EVA: directions and ranks from data, and that they outlive saving, resuming and PEFT."""

import copy
import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import lorica
from lorica import Dora, Lora
from lorica.base.packing import packed
from lorica.core.bank import adapted_layers, spec_of
from lorica.core.state import adapter_state, load_adapter_state
from lorica.errors import ConfigError, DataError
from lorica.inits.eva import Spectrum, calibrate, distributed, restore_ranks
from lorica.methods.lora import LoraAdapter
from lorica.methods.lora_fa import LoraFa
from tests.laws.bases import IDS, Stack, bits, move, same_bits
from tests.methods.llama import llama

GENERATOR = torch.Generator().manual_seed(5)
TEXT = torch.randint(3, 500, (6, 40), generator=GENERATOR)


def batches(n: int = 3) -> list[dict[str, Tensor]]:
    return [{"input_ids": part} for part in TEXT.chunk(n)]


def places(model: nn.Module, name: str = "default") -> dict[str, LoraAdapter]:
    return {site: layer_adapters[name] for site, _, layer_adapters in adapted_layers(model)}


def calibrated(kind: type[Lora] = Lora, n: int = 3, **settings) -> nn.Module:
    model = lorica.adapt(llama(), kind(**{"r": 4, "init": "eva", **settings}))
    calibrate(model, batches(n))
    return model


def inputs(model: nn.Module, ids: Tensor) -> dict[str, Tensor]:
    """What every adapted layer reads, (N, I), when the bare base runs on `ids`."""
    seen: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, site=site: seen.__setitem__(site, args[0].flatten(0, -2))
        )
        for site, module, _ in adapted_layers(model)
    ]
    with lorica.use(model):
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return seen


# -- directions -----


@pytest.mark.parametrize("kind", [Lora, Dora, LoraFa])
def test_begins_as_the_base_with_orthonormal_rows(kind):
    base, model = llama(), calibrated(kind)
    torch.testing.assert_close(model(IDS).logits, base(IDS).logits, atol=1e-4, rtol=1e-4)
    assert same_bits(bits(model), bits(base))
    for adapter in places(model).values():
        torch.testing.assert_close(adapter.a @ adapter.a.T, torch.eye(adapter.r), atol=1e-5, rtol=0)
        assert not adapter.b.any()
        assert adapter.a.requires_grad == (kind is not LoraFa)
        assert adapter.b.requires_grad


def test_of_one_batch_the_rows_are_the_exact_singular_vectors():
    model = calibrated(n=1)
    for site, rows in inputs(model, TEXT).items():
        a = places(model)[site].a
        _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
        for i in range(len(a)):
            if values[i] > 1.02 * values[i + 1]:  # of near equals any rotation will do
                torch.testing.assert_close(
                    (a[: i + 1] @ vectors[: i + 1].T).square().sum(),
                    torch.tensor(i + 1.0),
                    atol=1e-3,
                    rtol=0,
                )


def test_of_many_batches_they_hold_nearly_as_much():
    model = calibrated(n=6, init="eva_tau_1")
    for site, rows in inputs(model, TEXT).items():
        adapter = places(model)[site]
        held = (rows @ adapter.a.T).square().sum()
        best = torch.linalg.svdvals(rows)[: adapter.r].square().sum()
        assert 0.995 * best < held <= best * 1.0001


def test_a_spectrum_of_low_rank_is_exact_in_pieces():
    torch.manual_seed(1)
    rows = torch.randn(3000, 5) @ torch.randn(5, 30)
    spectrum = Spectrum(3)
    for part in rows.split(700):
        spectrum.update(part, 0.99)
    torch.testing.assert_close(
        spectrum.values[:3], torch.linalg.svdvals(rows)[:3], rtol=1e-4, atol=0
    )
    shares = torch.linalg.svdvals(rows).square() / rows.square().sum()
    assert spectrum.explained(3) == pytest.approx(shares[:3].tolist(), rel=1e-4)


def test_padding_is_left_out():
    lengths = (40, 11, 25)
    padded = torch.zeros(3, 40, dtype=torch.long)
    mask = torch.zeros(3, 40, dtype=torch.long)
    for i, n in enumerate(lengths):
        padded[i, :n], mask[i, :n] = TEXT[i, :n], 1
    found = []
    for how in ("masked", "packed", "as if it were text"):
        model = lorica.adapt(llama(), Lora(r=4, init="eva"))
        if how == "packed":
            line = torch.cat([TEXT[i, :n] for i, n in enumerate(lengths)])[None]
            at = torch.cat([torch.arange(n) for n in lengths])[None]
            with packed(model):
                calibrate(
                    model,
                    [
                        {
                            "input_ids": line,
                            "position_ids": at,
                            "use_cache": False,
                            "row_lengths": list(lengths),
                        }
                    ],
                )
        elif how == "masked":
            calibrate(model, [{"input_ids": padded, "attention_mask": mask}])
        else:
            calibrate(model, [{"input_ids": padded}])
        found.append(places(model))
    ranks = [{site: a.r for site, a in one.items()} for one in found]
    assert ranks[0] == ranks[1] != ranks[2]
    for site, adapter in found[0].items():
        lead = adapter.a[0] @ found[1][site].a[0]
        torch.testing.assert_close(lead.abs(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_layers_that_read_one_tensor_share_their_directions():
    adapters = places(calibrated())
    for block in range(5):
        q, k, v = (adapters[f"model.layers.{block}.self_attn.{n}_proj"].a for n in "qkv")
        n = min(len(q), len(k), len(v))
        assert torch.equal(q[:n], k[:n])
        assert torch.equal(q[:n], v[:n])


@pytest.mark.slow
def test_no_batch_is_asked_for_once_all_is_settled():
    asked = 0

    def endless() -> Iterator[dict[str, Tensor]]:
        nonlocal asked
        while asked < 50:
            asked += 1
            yield {"input_ids": TEXT}

    calibrate(lorica.adapt(llama(), Lora(r=4, init="eva_tau_0.9")), endless())
    assert 2 <= asked < 50
    asked = 0
    calibrate(lorica.adapt(llama(), Lora(r=4, init="eva_tau_1")), endless())
    assert asked == 50, "no cosine is above 1: all is read"


def test_the_model_is_left_as_it_was():
    model = lorica.adapt(llama(), Lora(r=4, init="eva")).train()
    model.model.layers[1].eval()
    modes = [m.training for n, m in model.named_modules() if "adapters" not in n]
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    calibrate(model, batches())
    assert [m.training for n, m in model.named_modules() if "adapters" not in n] == modes
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert places(model)["model.layers.0.self_attn.q_proj"].training
    model(IDS).logits.sum().backward()
    assert all(a.b.grad is not None for a in places(model).values())


# -- ranks -----


def test_ranks_by_hand():
    """5 ranks, 3 sites: one each; the two that are left go to 0.3 and 0.2."""
    explained = {"x": [0.6, 0.3, 0.05], "y": [0.5, 0.2, 0.1], "z": [0.9, 0.04, 0.01]}
    assert distributed(explained, 5) == {"x": 2, "y": 2, "z": 1}
    assert distributed(explained, 9) == {"x": 3, "y": 3, "z": 3}
    assert distributed(explained, 3) == {"x": 1, "y": 1, "z": 1}
    assert distributed({"x": [0.5, 0.4], "y": [0.5, 0.4]}, 3) == {"x": 2, "y": 1}
    with pytest.raises(DataError, match="9 components for the 10"):
        distributed(explained, 10)
    with pytest.raises(DataError, match="y"):
        distributed({"x": [1.0], "y": []}, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"alpha": 5},
        {"use_rslora": True},
        {"alpha": 7, "use_rslora": True},
        {"init": "eva_rho_1.5"},
    ],
    ids=str,
)
def test_the_sum_of_ranks_and_every_scale_stay(settings):
    method = Lora(**{"r": 4, "init": "eva", **settings})
    model = lorica.adapt(llama(), method)
    count = lorica.trainable_parameters(model).trainable
    ranks = calibrate(model, batches())
    adapters = places(model)
    assert ranks == {site: a.r for site, a in adapters.items()}
    assert {site: a.a.shape[0] for site, a in adapters.items()} == ranks
    assert {site: a.b.shape[1] for site, a in adapters.items()} == ranks
    assert sum(ranks.values()) == 4 * 35
    assert min(ranks.values()) >= 1
    assert 4 < max(ranks.values()) <= method.initialization.rho * 4
    assert all(a.scale == pytest.approx(method.scale, rel=1e-12) for a in adapters.values())
    assert count != lorica.trainable_parameters(model).trainable, "widths differ"


def test_with_rho_1_every_site_keeps_its_rank():
    model = calibrated(init="eva_rho_1")
    assert {a.r for a in places(model).values()} == {4}
    assert not spec_of(model, "default").targets.rank_pattern
    assert not spec_of(model, "default").targets.alpha_pattern


def test_ranks_that_were_given_by_site_count():
    given = {"q_proj": 8, "v_proj": 2}
    model = lorica.adapt(
        llama(), Lora(r=4, init="eva"), rank_pattern=given, alpha_pattern={"q_proj": 3.0}
    )
    scales = {site: a.scale for site, a in places(model).items()}
    ranks = calibrate(model, batches())
    assert sum(ranks.values()) == 5 * (8 + 2 + 5 * 4)
    assert max(r for site, r in ranks.items() if "v_proj" in site) <= 4
    for site, adapter in places(model).items():
        assert adapter.scale == pytest.approx(scales[site], rel=1e-12)


def fresh_from(model: nn.Module) -> nn.Module:
    """Another base with a fresh adapter of the same Spec, as the ranks now are."""
    spec = spec_of(model, "default")
    return lorica.core.attach.attach(llama(), spec, "default")  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [Lora, Dora])
def test_ranks_outlive_saving(kind, tmp_path):
    model = move(calibrated(kind, alpha=6))
    want = model(IDS).logits
    fresh = llama()
    assert lorica.load(fresh, lorica.save(model, tmp_path / "adapter")) == []
    assert torch.equal(fresh(IDS).logits, want)
    assert spec_of(fresh, "default") == spec_of(model, "default")
    assert {s: a.r for s, a in places(fresh).items()} == {s: a.r for s, a in places(model).items()}
    assert torch.equal(copy.deepcopy(model)(IDS).logits, want)
    lorica.merge(model)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "alpha": 9}], ids=str)
def test_peft_reads_the_ranks(settings, tmp_path):
    from peft import PeftModel

    model = move(calibrated(**settings))
    folder = lorica.save(model, tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert len(set(config["rank_pattern"].values()) | {config["r"]}) > 2
    theirs = PeftModel.from_pretrained(llama(), str(folder))
    torch.testing.assert_close(theirs(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [Lora, Dora, LoraFa])
def test_a_resumed_run_takes_the_ranks_of_its_checkpoint(kind):
    method = kind(r=4, init="eva", use_rslora=True)
    model = lorica.adapt(llama(), method)
    calibrate(model, batches())
    move(model)
    state = {k: t.detach().clone() for k, t in adapter_state(model).items()}
    resumed = lorica.adapt(llama(), method)
    restore_ranks(resumed, state)
    load_adapter_state(resumed, state)
    assert spec_of(resumed, "default") == spec_of(model, "default")
    assert torch.equal(resumed(IDS).logits, model(IDS).logits)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert [n for n, p in resumed.named_parameters() if p.requires_grad] == names
    resumed.train()(IDS).logits.sum().backward()  # it waits for no data


def test_the_other_adapter_keeps_still():
    model = lorica.adapt(llama(), Lora(r=2), name="other")
    move(model)
    want = model(IDS).logits
    lorica.adapt(model, Lora(r=4, init="eva"), name="new")
    lorica.activate(model, "other")
    calibrate(model, batches(), name="new")
    assert torch.equal(model(IDS).logits, want)
    assert all(not p.requires_grad for n, p in model.named_parameters() if ".new." in n)
    alone = calibrated()
    ours, theirs = places(model, "new"), places(alone)
    assert all(torch.equal(ours[s].a, theirs[s].a) for s in theirs), "of the bare base's inputs"


# -- what is refused -----


def test_training_without_data_is_refused():
    model = lorica.adapt(llama(), Lora(r=4, init="eva"))
    base = llama()(IDS).logits
    assert torch.equal(model.eval()(IDS).logits, base)
    with pytest.raises(ConfigError, match="initialized from data") as error:
        model.train()(IDS)
    assert "calibrate" in error.value.fix
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, base)


def test_only_what_begins_from_data_is_calibrated():
    with pytest.raises(ConfigError, match="is not initialized from data"):
        calibrate(lorica.adapt(llama(), Lora(r=4)), batches())
    with pytest.raises(ConfigError, match="ia3"):
        calibrate(lorica.adapt(llama(), lorica.method("ia3")), batches())
    with pytest.raises(ConfigError, match="no adapter 'nwe'"):
        calibrate(lorica.adapt(llama(), Lora(r=4, init="eva")), batches(), name="nwe")


def test_too_little_data_is_refused_and_changes_nothing():
    model = lorica.adapt(llama(), Lora(r=16, init="eva"))
    before = {k: t.clone() for k, t in adapter_state(model).items()}
    for few in ([], [{"input_ids": TEXT[:1, :9]}]):
        with pytest.raises(DataError, match="components for the 560 ranks") as error:
            calibrate(model, few)
        assert error.value.fix
        assert same_bits({k: t.detach() for k, t in adapter_state(model).items()}, before)
    calibrate(model, batches())


def test_a_mask_that_says_nothing_is_refused():
    model = lorica.adapt(llama(), Lora(r=4, init="eva"))
    with pytest.raises(DataError, match=r"\(1, 1, 40, 40\)"):
        calibrate(model, [{"input_ids": TEXT[:1], "attention_mask": torch.ones(1, 1, 40, 40)}])


def test_only_label_tokens_count_where_there_are_labels():
    """As in PEFT (use_label_mask): what stands at -100 is as if it were padding."""
    labels = TEXT.clone()
    labels[:, :25] = -100
    asked = lorica.adapt(llama(), Lora(r=4, init="eva_tau_1"))
    calibrate(asked, [{"input_ids": TEXT, "labels": labels}])
    seen = {
        k: rows.view(6, 40, -1)[:, 25:].flatten(0, 1) for k, rows in inputs(asked, TEXT).items()
    }
    for site, adapter in places(asked).items():
        top = torch.linalg.svd(seen[site], full_matrices=False)[2][: len(adapter.a)]
        torch.testing.assert_close(
            (top * adapter.a).sum(1).abs(), torch.ones(len(top)), atol=1e-3, rtol=0
        )


class Keyed(nn.Module):
    """A stack that takes its input, and a mask that it does not use, by name."""

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.stack, self.shift = Stack(), shift

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.stack(x + self.shift)


def test_inputs_that_cannot_be_used_are_refused():
    x, mask = torch.randn(2, 30, 12), torch.ones(2, 31)
    mask[0, 0] = 0
    model = lorica.adapt(Keyed(), Lora(r=2, init="eva"))
    with pytest.raises(DataError, match="the input of stack") as error:
        calibrate(model, [{"x": x, "attention_mask": mask}])
    assert error.value.facts["attention_mask"] == (2, 31)
    with pytest.raises(DataError, match="not finite"):
        calibrate(lorica.adapt(Keyed(math.nan), Lora(r=2, init="eva")), [{"x": x}])
    assert sum(calibrate(model, [{"x": x}]).values()) == 8
