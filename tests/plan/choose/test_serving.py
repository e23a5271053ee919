"""What an adapter needs before it is served follows from what the engines read."""

import pytest

from lorica.plan.choose.flowchart import EDGES
from lorica.plan.choose.serving import about_serving
from lorica.plan.choose.situation import Base, Rows, Situation


@pytest.mark.parametrize(
    ("serve", "edge", "kind", "words"),
    [
        ("lorica", "otherwise", "prompt", "lorica serve BASE --adapter NAME=RUN"),
        ("lorica", "capacity", "prompt", "lorica merge RUN --output MODEL"),
        ("lorica", "otherwise", "label", "lorica predict RUN"),
        ("vllm", "otherwise", "prompt", "the run folder loads as it is"),
        ("vllm", "forgetting", "prompt", "vLLM reads plain LoRA adapters: lorica export RUN"),
        ("vllm", "conditions", "prompt", "lorica export RUN --condition NAME"),
        ("llamacpp", "otherwise", "prompt", "llama.cpp reads plain LoRA adapters: lorica export"),
        ("llamacpp", "otherwise", "label", "no classifier's head"),
    ],
)
def test_serving(serve, edge, kind, words):
    situation = Situation(Rows(kind, 9, 8, 1, 9), Base("b", 64, 1, []), serve=serve)
    (reason,) = about_serving(situation, next(e for e in EDGES if e.name == edge))
    assert words in reason.why
