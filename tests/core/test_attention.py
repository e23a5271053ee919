"""Adapters inside attention: the same numbers for every layout of rows, cached or recomputed."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lorica
from lorica.base.packing import packed, why_not_packed
from lorica.core import attention
from lorica.core.attention import FRONT
from lorica.core.bank import adapted_layers
from lorica.core.front import (
    prepend_front,
)
from lorica.core.state import adapter_state
from lorica.data.batch import pack
from tests.core.attention_models import (
    EAGER,
    IDS,
    METHODS,
    MODELS,
    SIZE,
    adapted,
    close,
    each,
    everywhere,
    foreign,
    grads,
    logits,
    method,
    rows,
    tiny,
)
from tests.laws.bases import bits, move, same_bits


@everywhere
def test_it_acts_and_comes_off_again(name, base):
    plain = tiny(base)
    model = adapted(name, base)
    assert (logits(model, IDS) - logits(plain, IDS)).abs().max() > 1e-3
    with lorica.use(model):
        assert torch.equal(logits(model, IDS), logits(plain, IDS))
    lorica.detach(model)
    assert model.config._attn_implementation == plain.config._attn_implementation
    assert same_bits(bits(model), bits(plain))
    assert torch.equal(logits(model, IDS), logits(plain, IDS))


@everywhere
def test_a_cache_gives_what_the_whole_row_gives(name, base):
    model = adapted(name, base)
    with torch.no_grad():
        whole = logits(model, IDS)
        first = model(IDS[:, :6], use_cache=True)
        parts, cache = [first.logits], first.past_key_values
        for ids in (IDS[:, 6:7], IDS[:, 7:9], IDS[:, 9:]):
            parts.append(model(ids, past_key_values=cache, use_cache=True).logits)
    close(torch.cat(parts, 1), whole)
    assert cache.get_seq_length() == IDS.shape[1], "what stands in front is not in the cache"


@everywhere
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_is_the_argmax_of_whole_rows(name, base, cache):
    model, ids = adapted(name, base), IDS[:, :4]
    settings = {"cache_implementation": "static", "disable_compile": True}
    with torch.no_grad():
        want = ids
        for _ in range(6):
            want = torch.cat([want, logits(model, want)[:, -1:].argmax(-1)], 1)
        got = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            eos_token_id=None,
            **(settings if cache == "static" else {}),
        )
    assert got.tolist() == want.tolist()


@everywhere
def test_padding_on_the_left_changes_nothing(name, base):
    model = adapted(name, base)
    short = IDS[1:, 4:]
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1, :4], mask[1, :4] = 0, 0
    places = (mask.cumsum(1) - 1).clamp_min(0)
    got = logits(model, ids, attention_mask=mask, position_ids=places)
    close(got[0], logits(model, IDS[:1])[0])
    close(got[1, 4:], logits(model, short)[0])
    if name != "llama_adapter":  # counted from the mask by what stands in front
        close(logits(model, ids, attention_mask=mask)[1, 4:], got[1, 4:])
    generate = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    together = model.generate(ids, attention_mask=mask, **generate)
    alone = model.generate(short, attention_mask=torch.ones_like(short), **generate)
    assert together[1, -5:].tolist() == alone[0, -5:].tolist()


@everywhere
def test_padding_on_the_right_changes_nothing(name, base):
    model = adapted(name, base)
    ids, mask = IDS.clone(), torch.ones_like(IDS)
    ids[1, 7:], mask[1, 7:] = 0, 0
    got = logits(model, ids, attention_mask=mask)
    close(got[0], logits(model, IDS[:1])[0])
    close(got[1, :7], logits(model, IDS[1:, :7])[0])


@pytest.mark.parametrize("base", [b for b in MODELS if b not in EAGER])
@each
def test_rows_laid_end_to_end_give_what_each_gives_alone(name, base):
    """Losses and gradients, with rows longer than a sliding window."""
    model = adapted(name, base)
    assert why_not_packed(model) is None
    examples = rows([3, 17, 1, 9])
    alone = torch.zeros(4)
    for i, row in enumerate(examples):
        ids = torch.tensor([row.ids])
        loss = F.cross_entropy(logits(model, ids)[0, :-1], ids[0, 1:], reduction="sum")
        alone[i] = loss.detach()
        loss.backward()
    want = grads(model)
    model.zero_grad()
    batch = pack(examples)
    with packed(model):
        out = logits(
            model, batch.input_ids, position_ids=batch.position_ids, row_lengths=batch.lengths
        )
        losses = F.cross_entropy(out[0][batch.label_positions], batch.targets, reduction="none")
        losses.sum().backward()
    close(torch.zeros(4).index_add(0, batch.label_rows, losses.detach()), alone)
    for key, got in grads(model).items():
        torch.testing.assert_close(got, want[key], atol=2e-5, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@everywhere
def test_checkpointing_keeps_gradients(name, base):
    results = []
    for checkpointed in (False, True):
        model = adapted(name, base).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
        model(IDS, labels=IDS, use_cache=False).loss.backward()
        results.append(grads(model))
    for key, want in results[0].items():
        torch.testing.assert_close(results[1][key], want)


@everywhere
def test_a_bfloat16_base_is_near_the_float32_one(name, base):
    model = adapted(name, base)
    want, plain = logits(model, IDS), logits(tiny(base), IDS)
    half = lorica.adapt(tiny(base).bfloat16(), method(name))
    for key, tensor in adapter_state(model).items():
        adapter_state(half)[key].data.copy_(tensor)
    got = logits(half, IDS)
    assert got.dtype == torch.bfloat16
    rounding = (logits(tiny(base).bfloat16(), IDS).float() - plain).norm()
    assert (got.float() - want).norm() < 4 * rounding
    got.float().square().mean().backward()
    assert {g.dtype for g in grads(half).values()} == {torch.float32}
    assert {p.dtype for p in half.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.slow
@pytest.mark.parametrize("base", ["Llama", "GPT2"])  # the others' attention compiles as Llama's
@each
def test_compiles_whole(name, base):
    torch._dynamo.reset()
    model = move(lorica.adapt(tiny(base, num_hidden_layers=1), method(name)), size=0.3)
    with torch.no_grad():
        got = torch.compile(model, backend="aot_eager", fullgraph=True)(IDS, use_cache=False).logits
        close(got, logits(model, IDS))


@everywhere
def test_saved_and_loaded(name, base, tmp_path):
    model, fresh = adapted(name, base), tiny(base)
    lorica.save(model, tmp_path / "adapter")
    assert lorica.load(fresh, tmp_path / "adapter") == []
    assert torch.equal(logits(fresh, IDS), logits(model, IDS))


@each
def test_copies_stand_on_their_own(name):
    model = adapted(name, "Llama")
    want = logits(model, IDS)
    copied = move(copy.deepcopy(model), 5, size=0.3)
    assert not torch.allclose(logits(copied, IDS), want)
    assert torch.equal(logits(model, IDS), want)
    inside = {id(m) for m in copied.modules()}
    for _, _, adapters in adapted_layers(copied):
        for adapter in adapters.acting_adapters():
            assert all(id(layer) in inside for layer in getattr(adapter, "layer", ()))
    lorica.detach(copied)
    assert torch.equal(logits(copied, IDS), logits(tiny("Llama"), IDS))


@each
def test_beside_a_lora(name):
    """Both act; each comes off alone; what is left is what it was."""
    model = adapted(name, "Llama")
    alone = logits(model, IDS)
    lorica.adapt(model, lorica.Lora(r=2), name="lora")
    lorica.activate(model, "default", "lora")
    close(logits(model, IDS), alone)  # B is zero
    move(model, 4, size=0.1)
    both = logits(model, IDS)
    assert (both - alone).abs().max() > 1e-3
    both.square().mean().backward()
    assert {n.split(".adapters.")[1].split(".")[0] for n in grads(model)} == {"default", "lora"}
    if name == "prompt_tuning":  # the vectors go through the adapted layers, as tokens do
        (adapter,) = next(
            p for _, _, p in adapted_layers(model) if p.kind == "decoder"
        ).acting_adapters()
        words = torch.cat([adapter.e.expand(2, -1, -1), model.model.embed_tokens(IDS)], 1)
        with lorica.use(model, "lora"):
            close(both, model(inputs_embeds=words).logits[:, 5:])
    lorica.detach(model, "default")
    assert model.config._attn_implementation == "sdpa"
    with lorica.use(model):
        assert torch.equal(logits(model, IDS), logits(tiny("Llama"), IDS))


@pytest.mark.parametrize("first", ["prefix_tuning", "prompt_tuning"])
@pytest.mark.parametrize("second", ["prefix_tuning", "prompt_tuning"])
def test_two_in_front_stand_behind_one_another(first, second):
    model = adapted(first, "Llama")
    first = logits(model, IDS)
    lorica.adapt(model, method(second, num_virtual_tokens=3), name="other", seed=1)
    other = logits(model, IDS)
    lorica.activate(model, "default", "other")
    both = logits(model, IDS)
    assert (both - first).abs().max() > 1e-3
    assert (both - other).abs().max() > 1e-3
    a, b = next(p for _, _, p in adapted_layers(model) if p.kind == "decoder").acting_adapters()
    if first == second == "prefix_tuning":
        n, table = 8, torch.cat([a.table(), b.table()])
        whole = lorica.adapt(tiny("Llama"), method("prefix_tuning", num_virtual_tokens=n))
        next(adapted_layers(whole))[2]["default"].e.data.copy_(table)
        close(both, logits(whole, IDS))
    if first == second == "prompt_tuning":
        words = torch.cat([a.e, b.e]).expand(2, -1, -1)
        words = torch.cat([words, model.model.embed_tokens(IDS)], 1)
        with lorica.use(model):
            close(both, model(inputs_embeds=words).logits[:, 8:])


@pytest.mark.parametrize("base", [b for b in MODELS if b in EAGER])
def test_eager_stays_eager(base):
    """What only the model's own function computes is not lost: caps of scores, sinks."""
    model = lorica.adapt(tiny(base), method("llama_adapter"))
    assert torch.equal(logits(model, IDS), logits(tiny(base), IDS))
    assert model.config._attn_implementation == "lorica_eager"


# -- the parts ------------------------------------------------------------------------------


def test_prefixes_stand_before_an_encoder_too():
    """It reads both ways; its positions stay, and the classifier's rows are padded."""
    sizes = {k: v for k, v in SIZE.items() if "token_id" not in k}
    model = foreign("BertForSequenceClassification", "BertConfig", **sizes)
    base = model(IDS).logits
    lorica.adapt(model, method("prefix_tuning"))
    move(model, size=0.3)
    assert (model(IDS).logits - base).abs().max() > 1e-5
    ids, mask = F.pad(IDS, (0, 3)), F.pad(torch.ones_like(IDS), (0, 3))
    close(model(ids, attention_mask=mask).logits, model(IDS).logits)
    assert prepend_front(model.bert, {"input_ids": IDS}, {}, shift=False).keys() == {
        "input_ids",
        FRONT,
    }


def test_the_registry_holds_one_function_for_each_attention():
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    lorica.adapt(tiny("Llama"), method("prefix_tuning"))
    first = ALL_ATTENTION_FUNCTIONS[attention.registered("sdpa")]
    lorica.adapt(tiny("Qwen3"), method("llama_adapter"))
    assert ALL_ATTENTION_FUNCTIONS[attention.registered("sdpa")] is first


@pytest.mark.parametrize("base", ["Llama", "Mistral", "GPT2", "Gemma2"])
def test_rows_with_adapters_of_different_methods(base):
    """A prompt, a prefix, prompted layers, a LoRA and the base in one batch, with a cache."""
    model, names = tiny(base), [*METHODS, "lora", None]
    for seed, name in enumerate([*METHODS, "lora"]):
        made = method(name) if name in METHODS else lorica.Lora(r=2)
        move(lorica.adapt(model, made, name=name, seed=seed), seed, size=0.3)
    ids = torch.cat([IDS, IDS, IDS])[:5]
    want = []
    for i, name in enumerate(names):
        with lorica.use(model, *[name] if name else []):
            want.append(logits(model, ids[i : i + 1]))
    with lorica.mixed(model, names):
        close(logits(model, ids), torch.cat(want))
        first = model(ids[:, :6], use_cache=True)
        rest = model(ids[:, 6:], past_key_values=first.past_key_values, use_cache=True)
        close(torch.cat([first.logits, rest.logits], 1), torch.cat(want))
        mask = torch.ones_like(ids)
        mask[::2, :2] = 0
        padded = logits(model, ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).relu())
    for i, name in enumerate(names):
        cut = 2 * (1 - i % 2)
        with lorica.use(model, *[name] if name else []):
            close(padded[i, cut:], logits(model, ids[i : i + 1, cut:])[0])
