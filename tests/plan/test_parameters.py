"""The parameters that are counted without a model are those of the adapter that is attached."""

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from lorica.base.load import load
from lorica.core.attach import adapt, detach, trainable_parameters
from lorica.errors import ConfigError, TargetError
from lorica.plan.parameters import count_parameters, evaluate
from lorica.plan.shapes import read_shapes
from lorica.recipe.catalogue import methods
from lorica.recipe.method_settings import method_from_source
from lorica.training.config import read

CONDITIONS = ("de-en", "en-fr")
OPTIONS = {
    "aflora": [{"freeze_square": True}],
    "blora": [{"n_bits": 4, "prune_rank": False}, {"quantise_activations": True}],
    "bottleneck": [{"placement": "pfeiffer"}, {"train_norms": True}],
    "hyperlora": [{"condition": "pair"}],
    "llama_adapter": [{"v2": True}, {"adapter_layers": 1}],
    "lora": [{"lora_bias": True, "r": 3}],
    "mora": [{"mora_type": 1, "r": 3}],
    "prefix_tuning": [{"reparametrisation": 5}],
    "prompt_tuning": [{"reparametrisation": 5}],
}
CASES = [(name, options) for name in methods() for options in [{}, *OPTIONS.get(name, [])]]
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 64}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """name -> (where its config is, the model with random weights)."""
    folder = tmp_path_factory.mktemp("gpt2")
    config = AutoConfig.for_model("gpt2", **GPT2, bos_token_id=0, eos_token_id=0)
    config.save_pretrained(folder)
    small = AutoModelForCausalLM.from_config(config)
    return {"bundled": ("bundled", load("bundled").model), "gpt2": (str(folder), small)}


def plan_of(base, **settings):
    given = {"data": "rows.jsonl", "base": base, **settings}
    return read(None, given, check_method=method_from_source)


@pytest.mark.parametrize("base", ["bundled", "gpt2"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_counts_are_those_of_the_attached_adapter(bases, base, name, options):
    path, model = bases[base]
    config = plan_of(path, method={"name": name, **options})
    counted = count_parameters(read_shapes(path), config.method, config, conditions=CONDITIONS)
    adapt(model, config.build_method().for_conditions(CONDITIONS, 32))
    try:
        assert counted.trained == trainable_parameters(model).trainable
    finally:
        detach(model)


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"layers.0.*": 2}},
        {"target_modules": r"model\.layers\.[12]\..*", "exclude_modules": ["down_proj"]},
        {"target_modules": "all", "layers_to_transform": [1, 3]},
        {"modules_to_save": ["norm"], "target_modules": "all-linear"},
        {"trainable_token_indices": [5, 9]},
    ],
    ids=str,
)
def test_targets_select_what_they_select_in_training(bases, targets):
    path, model = bases["bundled"]
    config = plan_of(path, **targets)
    counted = count_parameters(read_shapes(path), config.method, config)
    adapt(model, config.build_method(), **targets)
    try:
        assert counted.trained == trainable_parameters(model).trainable
    finally:
        detach(model)


def test_the_kinds_of_layer_are_their_names():
    config = plan_of("bundled", target_modules=["q_proj", "down_proj"])
    counted = count_parameters(read_shapes("bundled"), config.method, config)
    assert counted.by_kind == {"q_proj": 6 * 8 * (256 + 256), "down_proj": 6 * 8 * (704 + 256)}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ({"target_modules": ["q_prj"]}, "'q_prj' selects none"),
        ({"exclude_modules": ["kproj"]}, "'kproj' selects none"),
        ({"modules_to_save": ["hed"]}, "'hed' selects none"),
        ({"layers_to_transform": [6]}, "has 6 blocks, counted from 0"),
    ],
)
def test_a_target_that_selects_nothing_is_an_error(targets, words):
    config = plan_of("bundled", **targets)
    with pytest.raises(TargetError, match=words):
        count_parameters(read_shapes("bundled"), config.method, config)


def test_a_rank_that_no_layer_allows_is_the_error_of_training(bases):
    config = plan_of("bundled", method={"name": "lora", "r": 100_000})
    with pytest.raises(ConfigError) as planned:
        count_parameters(read_shapes("bundled"), config.method, config)
    with pytest.raises(ConfigError) as trained:
        adapt(bases["bundled"][1], config.build_method())
    assert str(planned.value) == str(trained.value)


def test_a_count_that_is_no_arithmetic_is_refused():
    assert evaluate("(s or 2 * r) * (I + O)", {"r": 3, "I": 5, "O": 7, "s": None}) == 72
    for text in ("r * Q", "__import__('os')", "r.real", "r *"):
        with pytest.raises(ConfigError, match="states its parameters as"):
            evaluate(text, {"r": 3})
