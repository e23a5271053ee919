"""The prompts whose answers are recorded."""

from lorica.handover.golden_prompts import GoldenPrompt, _within


def test_a_prompt_beyond_the_limit_is_cut_to_ids_alone():
    prompt = GoldenPrompt([1, 2, 3], "one two three")
    assert _within(3, prompt) is prompt
    assert _within(2, prompt) == GoldenPrompt([1, 2], None)
