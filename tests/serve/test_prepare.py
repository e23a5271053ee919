"""Preparing an adapter on a twin: no memory of its own, nothing served changes, what is refused."""

import threading
from dataclasses import replace

import pytest
import torch

import lorica
from lorica.core.condition import set_conditions
from lorica.core.draws import drawing
from lorica.core.row_form import RowForm
from lorica.errors import BaseError, ConfigError, FileError
from lorica.formats.adapter_file import read
from lorica.serve.bank import ServingBank
from lorica.serve.prepare import prepare
from lorica.serve.twin import twin
from tests.laws.bases import SIZES, bits, gpt2, llama_nf4, method, move, same_bits, small_llama

IDS = torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(3))


def saved(folder, name, base=small_llama, seed=1, targets=None, **settings):
    """An adapter in `folder`, and the model that it acts on."""
    model = lorica.adapt(base(), method(name, **settings), **(targets or {}))
    lorica.save(move(model, seed, SIZES.get(name, 0.05)), folder)
    return model.eval()


def storages(model):
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())} | {
        v.untyped_storage().data_ptr()
        for m in model.modules()
        for v in vars(m).values()
        if isinstance(v, torch.Tensor)
    }


@pytest.mark.parametrize("base", [small_llama, llama_nf4])
def test_a_twin_has_modules_of_its_own_and_no_tensor(base):
    model = base()
    other = twin(model)
    assert storages(other) == storages(model)
    assert not {id(m) for m in other.modules()} & {id(m) for m in model.modules()}
    assert other.config is not model.config
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(other(IDS).logits, model(IDS).logits)


def test_a_model_with_adapters_has_no_twin():
    with pytest.raises(ConfigError, match="has adapters: default"):
        twin(lorica.adapt(small_llama(), method("lora")))


@torch.no_grad()
def test_the_served_model_never_changes_while_adapters_are_prepared(tmp_path):
    names = ["dora", "prefix_tuning", "llama_adapter", "lora"]
    for name in names:
        saved(tmp_path / name, name)
    model = small_llama()
    other, bank = twin(model), ServingBank(model)
    bank.add("lora", prepare(other, read(tmp_path / "lora"), tokenizer=None))
    before, modules = bits(model), [id(m) for m in model.modules()]
    with bank.acting(["lora", None]):
        want = model(IDS).logits
    done = threading.Event()

    def load():
        try:
            for name in names * 3:
                prepare(other, read(tmp_path / name), tokenizer=None)
        finally:
            done.set()

    thread = threading.Thread(target=load)
    thread.start()
    while not done.is_set():
        with bank.acting(["lora", None]):
            assert torch.equal(model(IDS).logits, want)
    thread.join()
    assert same_bits(bits(model), before) and [id(m) for m in model.modules()] == modules
    assert not any("adapters" in name for name, _ in other.named_modules())


@torch.no_grad()
def test_a_base_in_four_bits(tmp_path):
    alone = {name: saved(tmp_path / name, name, llama_nf4) for name in ("lora", "dora")}
    model = llama_nf4()
    other, bank = twin(model), ServingBank(model)
    for name in alone:
        bank.add(name, prepare(other, read(tmp_path / name), tokenizer=None))
    ids = IDS[:1].expand(3, -1)
    plain = model(ids).logits
    with bank.acting(["dora", None, "lora"]):
        got = model(ids).logits
    assert torch.equal(got[1], plain[1])
    for i, name in ((0, "dora"), (2, "lora")):
        torch.testing.assert_close(got[i], alone[name](IDS[:1]).logits[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(got[i], plain[i], atol=1e-2)


@torch.no_grad()
def test_two_conditions_in_one_batch_give_what_each_gives_alone(tmp_path):
    alone = saved(tmp_path / "h", "hyperlora", conditions=("en-de", "de-en"), condition="pair")
    model = small_llama()
    other, bank = twin(model), ServingBank(model)
    conditions = ["en-de", "de-en"]
    for condition in conditions:
        own = prepare(other, read(tmp_path / "h"), tokenizer=None, condition=condition)
        bank.add(condition, own)
    ids = IDS[:1].expand(4, -1)
    rows = ["de-en", "en-de", None, "de-en"]
    with bank.acting(rows):
        got = model(ids).logits
    for i, condition in enumerate(rows):
        if condition is None:
            assert torch.equal(got[i], model(ids).logits[i])
            continue
        set_conditions(alone, [condition])
        torch.testing.assert_close(got[i], alone(IDS[:1]).logits[0], atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got[0], got[1], atol=1e-2)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("en-fr", r"not trained on the condition 'en-fr'"),
        ("de-de", r"not trained on the condition 'de-de'"),
        (None, r"an adapter for each condition, and none is named"),
    ],
)
def test_a_condition_that_was_not_trained_on_is_refused(tmp_path, condition, words):
    saved(tmp_path / "h", "hyperlora", conditions=("en-de", "de-en"), condition="pair")
    with pytest.raises(ConfigError, match=words) as error:
        prepare(twin(small_llama()), read(tmp_path / "h"), tokenizer=None, condition=condition)
    assert "en-de" in str(error.value)


def test_a_condition_for_an_adapter_without_one_is_refused(tmp_path):
    saved(tmp_path / "l", "lora")
    with pytest.raises(ConfigError, match="lora adapter, which takes no condition"):
        prepare(twin(small_llama()), read(tmp_path / "l"), tokenizer=None, condition="x")


REFUSED = {
    "full": ("full", {}, {"target_modules": ["q_proj"]}),
    "norms": ("bottleneck", {"train_norms": True}, {}),
    "v2": ("llama_adapter", {"v2": True}, {}),
    "whole layers": ("lora", {}, {"modules_to_save": ["lm_head"]}),
    "tokens": ("lora", {}, {"trainable_token_indices": [5]}),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_acts_on_all_rows_is_refused_with_the_way_out(tmp_path, case):
    name, settings, targets = REFUSED[case]
    saved(tmp_path / "a", name, targets=targets, **settings)
    other = twin(small_llama())
    with pytest.raises(ConfigError, match="cannot be served beside others") as error:
        prepare(other, read(tmp_path / "a"), tokenizer=None)
    assert "lorica merge" in str(error.value)
    assert not any("adapters" in n for n, _ in other.named_modules())


def test_another_base_is_refused(tmp_path):
    saved(tmp_path / "a", "lora")
    other = small_llama()
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(BaseError, match="not the base that the adapter was trained on"):
        prepare(twin(other), read(tmp_path / "a"), tokenizer=None)


@torch.no_grad()
def test_numbers_that_the_layers_cannot_hold_are_refused(tmp_path):
    half = small_llama().half().float()  # float16 holds its numbers
    model = lorica.adapt(half, method("lora"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.fill_(1e30 if name.endswith(".a") else 1e-3)
    lorica.save(model, tmp_path / "a")
    prepare(twin(small_llama().half().float()), read(tmp_path / "a"), tokenizer=None)
    with pytest.raises(FileError, match=r"not finite in torch\.float16"):
        prepare(twin(small_llama().half()), read(tmp_path / "a"), tokenizer=None)


def test_bytes_are_those_of_the_tensors(tmp_path):
    saved(tmp_path / "a", "lora")
    prepared = prepare(twin(small_llama()), read(tmp_path / "a"), tokenizer=None)
    numbers = sum(t.numel() for t in read(tmp_path / "a").tensors.values())
    assert prepared.bytes == 4 * numbers
    saved(tmp_path / "v", "vera", r=256)
    vera = prepare(twin(small_llama()), read(tmp_path / "v"), tokenizer=None)
    assert not vera.forms and vera.bytes == 4 * sum(
        t.numel() for t in read(tmp_path / "v").tensors.values()
    )


def moe():
    """Experts of a block whose shared one reads the tokens of all rows as one list."""
    from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM

    config = Qwen2MoeConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=2,
        num_experts_per_tok=1,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    with drawing(0):
        return Qwen2MoeForCausalLM(config).eval()


def test_layers_of_experts_are_refused(tmp_path):
    saved(tmp_path / "all", "lora", moe, targets={"target_modules": ["q_proj", "up_proj"]})
    saved(tmp_path / "q", "lora", moe, targets={"target_modules": ["q_proj"]})
    other = twin(moe())
    with pytest.raises(ConfigError, match="layers that see no rows of a batch") as error:
        prepare(other, read(tmp_path / "all"), tokenizer=None)
    assert "shared_expert.up_proj" in str(error.value) and "q_proj" not in str(error.value)
    assert prepare(other, read(tmp_path / "q"), tokenizer=None).forms
    saved(tmp_path / "fused", "lora", moe, targets={"target_parameters": ["down_proj"]})
    with pytest.raises(ConfigError, match="as those of experts") as error:
        prepare(other, read(tmp_path / "fused"), tokenizer=None)
    assert "mlp.experts.down_proj" in str(error.value)


@torch.no_grad()
def test_a_layer_whose_weight_lies_the_other_way(tmp_path):
    alone = saved(tmp_path / "a", "dora", gpt2)
    model = gpt2()
    other, bank = twin(model), ServingBank(model)
    bank.add("a", prepare(other, read(tmp_path / "a"), tokenizer=None))
    ids = IDS[:1].expand(3, -1)
    plain = model(ids).logits
    with bank.acting(["a", None, "a"]):
        got = model(ids).logits
    assert torch.equal(got[1], plain[1])
    torch.testing.assert_close(got[2], alone(IDS[:1]).logits[0], atol=1e-6, rtol=1e-5)
    assert not torch.allclose(got[2], plain[2], atol=1e-4)


def test_an_adapter_that_cannot_be_added_leaves_nothing(tmp_path):
    saved(tmp_path / "a", "ia3")
    model = small_llama()
    other, bank = twin(model), ServingBank(model)
    prepared = prepare(other, read(tmp_path / "a"), tokenizer=None)
    unknown = replace(prepared, forms={**prepared.forms, "no_layer": RowForm(IDS, IDS)})
    with pytest.raises(KeyError):
        bank.add("a", unknown)
    assert not bank.resident and not bank.hooks and not bank.names
    assert not any("adapters" in name for name, _ in model.named_modules())
    bank.add("a", prepared)
