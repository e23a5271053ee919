"""What acts inside attention: the same numbers however rows are laid out, cached or recomputed."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lorica
from lorica.base.packing import packed, why_not_packed
from lorica.core import attention
from lorica.core.adapter import Method
from lorica.core.attention import FRONT, instrumented, project_qkv, widened_mask, with_adapters
from lorica.core.bank import adapted_layers
from lorica.core.front import (
    CACHED,
    check_prepending,
    in_front,
    keys_values_of,
    layers,
    probe_keys_values,
    shifted,
)
from lorica.core.state import adapter_state
from lorica.data.batch import pack
from lorica.data.example import Example
from lorica.errors import TargetError
from lorica.kernels.attention import attention_by_row
from tests.laws.bases import bits, move, same_bits

SIZE = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {**SIZE, "num_key_value_heads": 2}
MODELS = {
    "Llama": GROUPED,
    "GPT2": {k: v for k, v in SIZE.items() if k != "intermediate_size"},
    "GPTNeoX": SIZE,
    "Mistral": {**GROUPED, "sliding_window": 4},
    "Qwen3": {**GROUPED, "head_dim": 12},
    "Gemma2": {**GROUPED, "head_dim": 12, "sliding_window": 4},  # eager alone: scores are capped
    "GptOss": {
        **GROUPED,
        "head_dim": 12,
        "sliding_window": 4,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
    },  # eager alone: its heads have sinks
}
EAGER = ("Gemma2", "GptOss")
QUICK = ("Llama", "GPT2", "Gemma2")
"""Architectures that stand for the others; all are in the slow suite."""
METHODS = {
    "prefix_tuning": {"num_virtual_tokens": 5},
    "prompt_tuning": {"num_virtual_tokens": 5},
    "llama_adapter": {"adapter_len": 4},
}
IDS = torch.randint(1, 96, (2, 11), generator=torch.Generator().manual_seed(8))
each = pytest.mark.parametrize("name", METHODS)
everywhere = pytest.mark.parametrize(
    "name, base",
    [
        pytest.param(n, b, id=f"{n}-{b}", marks=[] if b in QUICK else [pytest.mark.slow])
        for n in METHODS
        for b in MODELS
    ],
)


def tiny(base: str, **settings: object) -> nn.Module:
    """A small model of an architecture, with random weights of a size that shows."""
    import transformers

    config = getattr(transformers, f"{base}Config")(**{**MODELS[base], **settings})
    if base in EAGER:
        config._attn_implementation = "eager"
    kind = f"{base}ForCausalLM" if base != "GPT2" else "GPT2LMHeadModel"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config).eval()
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn(parameter.shape))
    return model


def method(name: str, **settings: object) -> Method:
    return Method.named(name)(**{**METHODS[name], **settings})


def adapted(name: str, base: str) -> nn.Module:
    """With an adapter that has moved far enough to be seen."""
    return move(lorica.adapt(tiny(base), method(name)), size=0.3)


def logits(model: nn.Module, ids: Tensor, **options: object) -> Tensor:
    return model(ids, use_cache=False, **options).logits


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


def grads(model: nn.Module) -> dict[str, Tensor]:
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert gradients
    assert all(g is not None and g.abs().max() > 0 for g in gradients.values())
    return {n: g.clone() for n, g in gradients.items()}


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


def rows(sizes: list[int]) -> list[Example]:
    draw = torch.Generator().manual_seed(3)
    ids = [torch.randint(1, 96, (n,), generator=draw).tolist() for n in sizes]
    return [Example(i, [False] + [True] * (len(i) - 1), f"row {k}") for k, i in enumerate(ids)]


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


def softmax_mix(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    scores = (q @ k.mT * scale).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("causal", [True, False])
def test_rows_with_keys_in_front_are_mixed_by_the_definition(window, causal):
    draw = torch.Generator().manual_seed(1)
    sizes, n = [4, 1, 6], 2
    q = torch.randn(1, 4, 11, 5, generator=draw)
    k, v = (torch.randn(1, 2, 11, 5, generator=draw) for _ in range(2))
    front = tuple(torch.randn(2, n, 5, generator=draw) for _ in range(2))
    got = attention_by_row(
        q, k, v, sizes, scale=0.3, causal=causal, window=window if causal else None, front=front
    )
    start = 0
    for size in sizes:
        row = slice(start, start + size)
        start += size
        back = torch.arange(size).unsqueeze(1) - torch.arange(size)
        seen = (back >= 0) & (back < (window or size)) if causal else back == back
        seen = torch.cat([torch.ones(size, n, dtype=torch.bool), seen], 1)
        for head in range(4):
            keys, values = (
                torch.cat([f[head // 2], t[0, head // 2, row]])
                for f, t in zip(front, (k, v), strict=True)
            )
            want = softmax_mix(q[0, head, row], keys, values, seen, 0.3)
            torch.testing.assert_close(got[0, head, row], want)


@pytest.mark.parametrize(
    "given, t, s, causal, want",
    [
        (None, 1, 5, True, None),
        (None, 3, 3, False, None),
        (None, 2, 2, True, [[1, 1, 1, 0], [1, 1, 1, 1]]),
        (None, 2, 3, True, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]),  # a static cache, one place empty
        ([[False, True]], 1, 2, True, [[1, 1, 0, 1]]),
        ([[-9.0, 0.0]], 1, 2, True, [[0, 0, -9, 0]]),
    ],
    ids=str,
)
def test_masks_are_widened(given, t, s, causal, want):
    mask = None if given is None else torch.tensor(given).view(1, 1, t, s)
    got = widened_mask(mask, torch.zeros(1, 1, t, 4), torch.zeros(1, 1, s, 4), 2, causal)
    assert (got is None) == (want is None)
    if got is not None:
        assert got.shape == (1, 1, t, s + 2)
        assert got[0, 0].float().tolist() == want


def test_where_tokens_stand():
    decoder, ids = tiny("Llama").model, IDS[:, :4]
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])

    class Past:
        def get_seq_length(self) -> int:
            return 7

    def places(**options: object) -> list[list[int]]:
        return shifted(decoder, options, 10)["position_ids"].tolist()

    assert places(input_ids=ids) == [[10, 11, 12, 13]]
    assert places(inputs_embeds=torch.zeros(2, 4, 32)) == [[10, 11, 12, 13]]
    assert places(input_ids=ids, past_key_values=Past()) == [[17, 18, 19, 20]]
    assert places(input_ids=ids, position_ids=torch.tensor([[3, 4, 0, 1]])) == [[13, 14, 10, 11]]
    assert places(input_ids=ids, attention_mask=mask) == [[10, 11, 12, 13], [10, 10, 10, 11]]
    assert places(input_ids=ids[:, 3:], attention_mask=mask) == [[13], [11]]
    assert places(input_ids=ids, attention_mask=mask[:, None, None]) == [[10, 11, 12, 13]]


def test_a_call_with_positional_arguments_is_the_same_call():
    model = adapted("prefix_tuning", "Llama")
    close(model.model(IDS)[0], model.model(input_ids=IDS)[0])


def test_keys_and_values_of_a_layer_are_not_rotated():
    for base, keys in (("Llama", "k_proj"), ("Qwen3", "k_proj")):
        layer = tiny(base).model.layers[1].self_attn
        x = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
        with instrumented(layer):
            query, key, value = project_qkv(layer, x)
            want = getattr(layer, keys)(x).unflatten(-1, (2, -1))
            want = layer.k_norm(want) if base == "Qwen3" else want
        assert query.shape == (1, 4, 3, layer.head_dim)
        torch.testing.assert_close(key[0].transpose(0, 1), want)
        torch.testing.assert_close(value[0].transpose(0, 1).flatten(1), layer.v_proj(x))


def test_vectors_run_alone_give_the_cache_of_their_tokens():
    model = tiny("Qwen3")
    with torch.no_grad():
        cache = model(IDS[:1], use_cache=True).past_key_values
        front = probe_keys_values(model.model, model.model.embed_tokens(IDS[0]))
    assert list(front) == [0, 1, 2]
    for i, (keys, values) in front.items():
        torch.testing.assert_close(keys, cache.layers[i].keys[0])
        torch.testing.assert_close(values, cache.layers[i].values[0])


def test_a_generation_runs_the_vectors_once(monkeypatch):
    model, calls = adapted("prompt_tuning", "Llama"), []
    monkeypatch.setattr(
        "lorica.methods.prompt_tuning.keys_values_of",
        lambda *a: calls.append(1) or keys_values_of(*a),
    )
    settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    model.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)
    assert len(calls) == 1
    model.generate(IDS, attention_mask=torch.ones_like(IDS), **settings)
    assert len(calls) == 2
    first = model(IDS[:, :5], use_cache=True)  # with gradients: at every call
    model(IDS[:, 5:], past_key_values=first.past_key_values)
    assert len(calls) == 4


def test_a_cache_that_is_used_again_holds_nothing_old():
    """generate() empties a static cache and fills it again, also after a step of training."""
    from transformers import StaticCache

    model = adapted("prompt_tuning", "Llama")
    cache = StaticCache(model.config, max_cache_len=32)
    with torch.no_grad():
        model(IDS, past_key_values=cache, use_cache=True)
        assert vars(cache)[CACHED]
        move(model, 9, size=0.3)
        cache.reset()
        close(model(IDS, past_key_values=cache, use_cache=True).logits, logits(model, IDS))


def test_listening_leaves_no_trace():
    model = tiny("Llama").train()
    model.model.layers[1].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(TargetError, match="LlamaModel refuses") as error, instrumented(model.model):
        assert not any(m.training for m in model.model.modules())
        assert model.config._attn_implementation == "lorica_sdpa"
        raise RuntimeError("no such thing")
    assert "no such thing" in error.value.facts["why"]
    assert [m.training for m in model.modules()] == modes
    assert model.config._attn_implementation == "sdpa"
    assert torch.is_grad_enabled()


def test_an_adapter_that_cannot_be_attached_leaves_the_model_as_it_was():
    model = tiny("Llama")
    before = bits(model)
    with pytest.raises(lorica.LoricaError):
        lorica.adapt(model, method("prompt_tuning", num_virtual_tokens=64))
    assert same_bits(bits(model), before)
    assert model.config._attn_implementation == "sdpa"
    assert all(p.requires_grad for p in model.parameters())


# -- what is refused ------------------------------------------------------------------------


def foreign(kind: str, config: str, **settings: object) -> nn.Module:
    import transformers

    return getattr(transformers, kind)(getattr(transformers, config)(**settings)).eval()


def test_attention_that_takes_no_such_mask_is_refused():
    q = torch.zeros(1, 1, 2, 4)
    attend = with_adapters(lambda *a, **k: (q, None), fronts=False)
    layer = tiny("Llama").model.layers[0].self_attn
    front = {0: (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))}
    assert attend(layer, q, q, q, None)[0].shape == q.shape
    with pytest.raises(TargetError, match="takes no keys and values in front") as error:
        attend(layer, q, q, q, None, **{FRONT: front})
    assert "sdpa" in error.value.fix


@pytest.mark.parametrize(
    "kind, config", [("FalconForCausalLM", "FalconConfig"), ("GPTJForCausalLM", "GPTJConfig")]
)
@each
def test_an_attention_of_its_own_is_refused(name, kind, config):
    model = foreign(
        kind,
        config,
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        rotary_dim=4,
    )
    before = bits(model)
    with pytest.raises(TargetError) as error:
        lorica.adapt(model, method(name))
    assert "lora" in error.value.fix
    assert same_bits(bits(model), before)


@each
def test_an_encoder_beside_a_decoder_is_refused(name):
    model = foreign(
        "T5ForConditionalGeneration",
        "T5Config",
        vocab_size=96,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
    )
    with pytest.raises(TargetError):
        lorica.adapt(model, method(name))
    if name != "llama_adapter":
        with pytest.raises(TargetError, match="no single row"):
            layers(model.decoder)


def test_virtual_tokens_that_would_see_the_text_are_refused():
    sizes = {k: v for k, v in SIZE.items() if "token_id" not in k}
    model = foreign("BertForMaskedLM", "BertConfig", **sizes)
    with pytest.raises(TargetError, match="both directions") as error:
        lorica.adapt(model, method("prompt_tuning"))
    assert "prefix_tuning" in error.value.fix


def test_layers_that_carry_a_state_are_refused():
    """Tried: a decoder whose embeddings reach over to the next token, and counted: a hybrid."""
    model = tiny("Llama")
    check_prepending(model.model)
    mlp = model.model.layers[0].mlp
    mlp.register_forward_hook(lambda m, a, y: y + 0.5 * F.pad(y, (0, 0, 1, -1)))
    with pytest.raises(TargetError, match="as if it were prepended"):
        check_prepending(model.model)
    hybrid = foreign(
        "Lfm2ForCausalLM",
        "Lfm2Config",
        **GROUPED,
        layer_types=["conv", "full_attention", "full_attention"],
    )
    with pytest.raises(TargetError, match="more from token to token") as error:
        lorica.adapt(hybrid, method("prompt_tuning"))
    assert error.value.facts["attention"] == "in 2 of 3 layers"


@pytest.mark.parametrize("name", ["prefix_tuning", "prompt_tuning"])
def test_a_model_without_its_head_has_no_decoder(name):
    with pytest.raises(TargetError, match="this one has none") as error:
        lorica.adapt(tiny("Llama").model, method(name))
    assert "AutoModelForCausalLM" in error.value.fix


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
    assert in_front(model.bert, {"input_ids": IDS}, {}, shift=False).keys() == {
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
