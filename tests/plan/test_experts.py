"""Mixtures of experts are planned with the layers that transformers builds of their files."""

from typing import Any

import pytest

from lorica.base.load import load
from lorica.core.attach import adapt, detach, trainable_parameters
from lorica.core.bank import adapted_layers
from lorica.core.site import sites_of
from lorica.errors import TargetError
from lorica.plan.parameters import count_parameters
from lorica.plan.selection import adapted_sites
from lorica.plan.shapes import MIXTURE, read_shapes
from lorica.recipe.method_settings import method_from_source
from lorica.training.config import read
from tests.base.architectures import write

QUICK = ("mixtral", "gpt_oss")
MORE = ("deepseek_v3", "qwen3_moe", "qwen2_moe", "olmoe", "phimoe")
MODELS = [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
TARGETS: tuple[dict[str, Any], ...] = (
    {},
    {"target_parameters": "experts"},
    {"target_modules": [], "target_parameters": ["experts.down_proj"]},
    {
        "target_parameters": "experts",
        "rank_pattern": {"gate_up_proj": 3},
        "layers_to_transform": [1],
    },
)


@pytest.fixture(scope="module", params=MODELS)
def base(request, tmp_path_factory):
    """The folder of a small mixture of experts."""
    return str(write(tmp_path_factory.mktemp("base"), request.param))


def settings(base: str, **given: object):
    return read(
        None, {"data": "rows.jsonl", "base": base, **given}, check_method=method_from_source
    )


def test_stacks_and_counts_are_those_of_the_model(base):
    shapes = read_shapes(base)
    model = load(base).model
    planned = {s.name: (s.inputs, s.outputs, s.experts) for s in shapes.sites if s.kind == "expert"}
    assert planned == {
        s.name: (s.in_features, s.out_features, s.experts) for s in sites_of(model, ("expert",))
    }
    assert planned and MIXTURE in shapes.notices
    assert shapes.parameters == sum(t.numel() for t in model.state_dict().values())
    for name in ("lora", "dora"):
        for targets in TARGETS:
            config = settings(base, method={"name": name}, **targets)
            counted = count_parameters(shapes, config.method, config)
            adapt(model, config.build_method(), **targets)
            assert counted.trained == trainable_parameters(model).trainable
            names = [site.name for site in adapted_sites(shapes, config.method, config)]
            assert sorted(names) == sorted(name for name, _, _ in adapted_layers(model))
            detach(model)


def test_a_base_without_experts_is_refused():
    config = settings("bundled", target_parameters=["down"])
    with pytest.raises(TargetError, match="no fused weights of experts on which lora"):
        count_parameters(read_shapes("bundled"), config.method, config)


def test_a_method_that_is_not_defined_on_experts_is_refused(base):
    config = settings(base, method={"name": "mora"}, target_parameters="experts")
    with pytest.raises(TargetError, match="on which mora is defined"):
        count_parameters(read_shapes(base), config.method, config)
