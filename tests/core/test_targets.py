"""Every entry of every target must select something, and a failing adapt changes nothing."""

import copy

import pytest
import torch

import lorica
from lorica import Dora, Full, Lora
from lorica.core.attach import trainable_parameters
from lorica.core.bank import adapted_layers
from lorica.errors import ConfigError, TargetError
from tests.laws.bases import IDS, Stack, bits, gpt2, move, same_bits, small_llama

LLAMA_LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def sites(model) -> list[str]:
    return [name for name, _, _ in adapted_layers(model)]


def leaves(model) -> set[str]:
    return {name.rpartition(".")[2] for name in sites(model)}


REFUSED = {
    "a misspelt target": ({"target_modules": ["q_prj"]}, "'q_prj'"),
    "one misspelt of two": ({"target_modules": ["q_proj", "v_prj"]}, "'v_prj'"),
    "half a name": ({"target_modules": ["proj"]}, "'proj'"),
    "no target": ({"target_modules": []}, "target_modules"),
    "a regex that finds nothing": ({"target_modules": r".*\.q_prj"}, "q_prj"),
    "a regex on half of the name": ({"target_modules": "[qv]_proj"}, "'[qv]_proj'"),
    "no regex": ({"target_modules": "(q_proj"}, "not a regular expression"),
    "a list in a list": ({"exclude_modules": "[[1]]"}, "not a regular expression"),
    "a norm": ({"target_modules": ["input_layernorm"]}, "input_layernorm"),
    "an exclusion of nothing": ({"exclude_modules": ["q_prj"]}, "exclude_modules 'q_prj'"),
    "an exclusion of what is not chosen": (
        {"target_modules": ["v_proj"], "exclude_modules": ["q_proj"]},
        "exclude_modules",
    ),
    "an exclusion of everything": ({"exclude_modules": ".*"}, "selects none"),
    "a broken exclusion": ({"exclude_modules": "*q"}, "not a regular expression"),
    "a block too far": ({"layers_to_transform": [0, 5]}, "'5'"),
    "a block before the first": ({"layers_to_transform": [-1]}, "'-1'"),
    "a rank pattern": ({"rank_pattern": {"q_prj": 2}}, "rank_pattern 'q_prj'"),
    "an alpha pattern": ({"alpha_pattern": {"layers.9.q_proj": 2}}, "alpha_pattern"),
    "a broken pattern": ({"rank_pattern": {"(q": 2}}, "not a regular expression"),
    "a layer to save": ({"modules_to_save": ["lm_haed"]}, "modules_to_save 'lm_haed'"),
    "a token past the end": ({"trainable_token_indices": [5, 512]}, "vocabulary"),
    "a token before the first": ({"trainable_token_indices": [-1]}, "vocabulary"),
    "a token twice": ({"trainable_token_indices": [5, 5]}, "twice"),
    "two masters of an embedding": (
        {"target_modules": ["embed_tokens"], "trainable_token_indices": [5]},
        "embed_tokens",
    ),
    "tokens of what is saved whole": (
        {"modules_to_save": ["lm_head"], "trainable_token_indices": [5]},
        "lm_head",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_every_entry_must_select(case):
    targets, words = REFUSED[case]
    model = small_llama().requires_grad_(True)
    before, want = bits(model), model(IDS).logits
    with pytest.raises(TargetError) as error:
        lorica.adapt(model, Lora(), **targets)
    assert words in str(error.value)
    assert "fix" in str(error.value)
    assert not sites(model)
    assert same_bits(before, model.state_dict())
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(IDS).logits, want)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(TargetError) as error:
        lorica.adapt(
            small_llama(),
            Lora(),
            target_modules=["q_proj", "v_prj", "up_prj"],
            exclude_modules=["o_prj"],
            layers_to_transform=[77],
            rank_pattern={"gate": 2},
        )
    for word in ("v_prj", "up_prj", "o_prj", "77", "gate"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    "name", ["", "two words", "a.b", "training", "model_bank", "kind", "keys", "as_site", "forward"]
)
def test_names_that_an_adapter_cannot_have(name):
    model = Stack()
    with pytest.raises(ConfigError, match="adapter name"):
        lorica.adapt(model, Lora(), name=name)
    assert not sites(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_name_is_taken_once():
    model = move(lorica.adapt(Stack(), Lora()))
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.raises(ConfigError, match="already attached"):
        lorica.adapt(model, Dora())
    assert same_bits(before, dict(model.named_parameters()))


def test_a_second_adapter_that_fails_leaves_the_first_as_it_was():
    model = move(lorica.adapt(small_llama(), Lora()))
    want = model(IDS).logits
    with pytest.raises(TargetError):
        lorica.adapt(model, Lora(), name="second", target_modules=["nothing"])
    assert torch.equal(model(IDS).logits, want)
    assert trainable_parameters(model).trainable > 0


def test_a_bias_on_an_embedding_is_refused():
    model = small_llama()
    with pytest.raises(TargetError, match="embed_tokens"):
        lorica.adapt(model, Lora(lora_bias=True), target_modules=["q_proj", "embed_tokens"])
    assert not sites(model)


def test_an_unknown_setting_is_named():
    with pytest.raises(ConfigError, match="'target_module'") as error:
        lorica.adapt(Stack(), Lora(), target_module=["up"])
    assert "target_modules" in error.value.facts["closest"]


def test_a_pattern_for_a_setting_that_the_method_lacks():
    with pytest.raises(ConfigError, match="full has no setting 'r'"):
        lorica.adapt(Stack(), Full(), rank_pattern={"up": 2})


def test_all_linear_leaves_the_head_out():
    assert leaves(lorica.adapt(small_llama(), Lora())) == LLAMA_LINEARS
    assert leaves(lorica.adapt(gpt2(), Lora())) == {"c_attn", "c_proj", "c_fc"}


def test_all_linear_leaves_the_head_of_a_classifier_out():
    model = lorica.adapt(classifier(), Lora())
    assert leaves(model) == LLAMA_LINEARS


def test_all_takes_every_kind_that_the_method_knows():
    model = lorica.adapt(small_llama(), Full(), target_modules="all")
    rest = {"norm", "embed_tokens", "lm_head", "input_layernorm", "post_attention_layernorm"}
    assert leaves(model) == LLAMA_LINEARS | rest


def test_a_suffix_is_whole_parts_of_a_name_and_a_regex_is_the_whole_name():
    by_suffix = lorica.adapt(small_llama(), Lora(), target_modules=["self_attn.q_proj"])
    by_regex = lorica.adapt(
        small_llama(), Lora(), target_modules=r"model\.layers\.\d\.self_attn\.q_.*"
    )
    assert sites(by_suffix) == sites(by_regex)
    assert len(sites(by_suffix)) == 5
    by_word = lorica.adapt(small_llama(), Lora(), target_modules="self_attn.q_proj")
    assert sites(by_word) == sites(by_suffix)
    one_layer = lorica.adapt(small_llama(), Lora(), target_modules=["layers.1.self_attn.q_proj"])
    assert sites(one_layer) == ["model.layers.1.self_attn.q_proj"]


def test_blocks_and_exclusions_narrow_the_choice():
    model = lorica.adapt(
        small_llama(), Lora(), exclude_modules=["k_proj", "mlp.up_proj"], layers_to_transform=[1, 3]
    )
    assert leaves(model) == LLAMA_LINEARS - {"k_proj", "up_proj"}
    assert {name.split(".")[2] for name in sites(model)} == {"1", "3"}


def test_patterns_change_r_and_alpha_where_they_match():
    model = lorica.adapt(
        small_llama(),
        Lora(r=4, alpha=8),
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 2, "layers.0.self_attn.q_proj": 6},
        alpha_pattern={r"layers\.[12]\..*_proj": 3},
    )
    for name, _, adapters in adapted_layers(model):
        adapter, block = adapters["default"], name.split(".")[2]
        r = 2 if "down" in name else 6 if block == "0" else 4
        alpha = 3 if block in "12" else 8
        assert (adapter.a.shape[0], adapter.b.shape[1]) == (r, r)
        assert adapter.scale == alpha / r


def test_without_alpha_the_scale_stays_2_where_r_changes():
    model = lorica.adapt(Stack(), Lora(r=4), rank_pattern={"up": 2})
    assert {adapters["default"].scale for _, _, adapters in adapted_layers(model)} == {2.0}


@pytest.mark.parametrize("value", [0, -1])
def test_a_pattern_obeys_the_limits_of_the_setting(value):
    model = Stack()
    with pytest.raises(ConfigError, match="at least 1"):
        lorica.adapt(model, Lora(), rank_pattern={"up": value})
    assert not sites(model)


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": {"up", "down"}},
        {"target_modules": ("up",), "exclude_modules": {"layers.0.up"}},
        {"layers_to_transform": range(1)},
        {"layers_to_transform": 1},
        {"target_modules": ["up"], "modules_to_save": "down"},
    ],
    ids=["sets", "a tuple", "a range", "one block", "one name"],
)
def test_what_can_be_attached_can_be_saved(targets, tmp_path):
    """A set where a list is meant must not fail after the training, when it is written."""
    model = move(lorica.adapt(Stack(), Lora(), **targets))
    fresh = Stack()
    lorica.load(fresh, lorica.save(model, tmp_path / "adapter"))
    assert sites(fresh) == sites(model)


def classifier(tie: bool = False):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForSequenceClassification(
            LlamaConfig(
                vocab_size=64,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_labels=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                pad_token_id=0,
                tie_word_embeddings=tie,
            )
        ).eval()


def test_a_classification_head_is_trained_whole(tmp_path):
    model, base = classifier(), classifier()
    lorica.adapt(model, Lora(r=2), target_modules=["q_proj"], modules_to_save=["score"])
    assert "score" in sites(model)
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    model(IDS).logits.square().sum().backward()
    assert model.score.adapters["default"].weight.grad is not None
    assert model.score.weight.grad is None
    move(model)
    fresh = classifier()
    lorica.load(fresh, lorica.save(model, tmp_path / "adapter"))
    want = model(IDS).logits
    assert not torch.allclose(want, base(IDS).logits)
    assert torch.equal(fresh(IDS).logits, want)
    lorica.merge(model)
    torch.testing.assert_close(model(IDS).logits, want, atol=1e-5, rtol=1e-5)


def test_a_container_is_saved_with_all_below_it():
    from transformers import RobertaConfig, RobertaForSequenceClassification

    config = RobertaConfig(
        vocab_size=64,
        hidden_size=32,
        num_hidden_layers=1,
        num_labels=3,
        num_attention_heads=2,
        intermediate_size=48,
    )
    model = RobertaForSequenceClassification(config).eval()
    base = copy.deepcopy(model)
    lorica.adapt(model, Lora(), target_modules=["query"], modules_to_save=["classifier"])
    assert {"classifier.dense", "classifier.out_proj"} <= set(sites(model))
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    assert not torch.equal(move(model)(IDS).logits, base(IDS).logits)


def test_a_layer_that_is_saved_whole_is_no_target():
    model = lorica.adapt(classifier(), Lora(), modules_to_save=["q_proj"])
    kinds = {
        name.rpartition(".")[2]: type(adapters["default"]).__name__
        for name, _, adapters in adapted_layers(model)
    }
    assert kinds["q_proj"] == "ModuleCopy"
    assert kinds["v_proj"] == "LoraAdapter"


def test_tokens_alone_move_their_rows_and_no_others():
    model, base = small_llama(), small_llama()
    lorica.adapt(model, Lora(), target_modules=["q_proj"], trainable_token_indices=[5, 17])
    without = IDS.clone().clamp(min=20)
    assert torch.equal(model(IDS).logits, base(IDS).logits)
    with torch.no_grad():
        model.model.embed_tokens.adapters["default"].rows.add_(0.1)
    moved = (model(without).logits - base(without).logits).abs().amax((0, 1))
    assert (moved > 0).nonzero().flatten().tolist() == [5, 17], "as outputs, the head being tied"
    with_it = without.clone()
    with_it[0, 0] = 5
    assert (model(with_it).logits - base(with_it).logits)[0, :, 100].abs().max() > 0
    assert trainable_parameters(model).trainable == 5 * 8 * (64 + 64) + 2 * 64
