"""Keys and values in front of rows: masks, positions, caches, and vectors that run alone."""

import pytest
import torch
from torch import Tensor

import lorica
from lorica.core.attention import instrumented, project_qkv, widened_mask
from lorica.core.front import (
    CACHED,
    keys_values_of,
    probe_keys_values,
    shift_positions,
)
from lorica.errors import TargetError
from lorica.kernels.attention import attention_by_row
from tests.core.attention_models import IDS, adapted, close, logits, method, tiny
from tests.laws.bases import bits, move, same_bits


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
        return shift_positions(decoder, options, 10)["position_ids"].tolist()

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
