"""Generation: batches, stops, context, sampling with a seed, conversations, streaming."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import lorica
from lorica.base.load import LoadedModel
from lorica.base.load import load as load_base
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.text_encoder import prompt_ids
from lorica.errors import ConfigError, DataError
from lorica.generation.chat import Chat
from lorica.generation.generate import generate, generate_from_ids
from lorica.generation.prompts import end_of_turn
from lorica.generation.sampling import Sampling
from lorica.generation.stops import Stops, stops_of
from tests.base.classifiers import model as tiny_model
from tests.base.classifiers import save as save_base
from tests.laws.bases import move
from tests.small_base import VOCABULARY

PROMPTS = ["Once upon a time", "Lily and her mom went to the big park. They", "Tom", "The cat"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def base(small_base):
    return load_base(str(small_base))


@pytest.fixture(scope="module")
def short(base):
    """40 learned positions: one position too many is an index error."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=40,
        n_embd=32,
        n_layer=2,
        n_head=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LoadedModel(GPT2LMHeadModel(config).eval(), base.tokenizer, "gpt2")


@torch.no_grad()
def greedy_without_cache(base, prompt, count):
    ids, stops = list(prompt), stops_of(base).tokens
    for _ in range(count):
        ids.append(base.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax().item())
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


def test_a_left_padded_batch_is_each_prompt_alone(base):
    together = generate(base, PROMPTS, max_new_tokens=30)
    for prompt, text, tokens in zip(PROMPTS, together.texts, together.tokens, strict=True):
        alone = generate(base, [prompt], max_new_tokens=30)
        assert (alone.texts, alone.tokens) == ([text], [tokens])
        ids = [
            base.tokenizer.bos_token_id,
            *base.tokenizer.encode(prompt, add_special_tokens=False),
        ]
        assert tokens == greedy_without_cache(base, ids, 30)
    assert generate(base, PROMPTS, max_new_tokens=30, batch_size=2).tokens == together.tokens


def test_an_adapter_generates_the_same_in_a_batch_and_alone(base, small_base):
    adapted = load_base(str(small_base))
    lorica.adapt(adapted.model, lorica.Lora(r=4))
    move(adapted.model, size=0.3)
    together = generate(adapted, PROMPTS, max_new_tokens=20).tokens
    assert together == [generate(adapted, [p], max_new_tokens=20).tokens[0] for p in PROMPTS]
    plain = generate(base, PROMPTS, max_new_tokens=20).tokens
    assert together != plain
    with lorica.use(adapted.model):
        assert generate(adapted, PROMPTS, max_new_tokens=20).tokens == plain


def test_figures(base):
    generation = generate(base, PROMPTS, max_new_tokens=10)
    assert generation.tokens_per_second == pytest.approx(
        sum(map(len, generation.tokens)) / generation.seconds
    )
    assert generation.peak_memory_bytes is None or generation.peak_memory_bytes > 10_000_000
    assert generation.notices == ["4 texts were cut after 10 tokens"]


def test_a_text_keeps_the_space_between_it_and_the_prompt(base):
    """The tokenizer drops the first space of a text that it decodes by itself."""
    generation = generate(base, ["Lily and her mom went to the big park. They"], max_new_tokens=8)
    (text,), (tokens,) = generation.texts, generation.tokens
    assert text.startswith(" ") and not base.tokenizer.decode(tokens).startswith(" ")


def test_a_stop_token_ends_a_text_and_is_not_in_it(base):
    prompt = [1, *base.tokenizer.encode("Once upon a time", add_special_tokens=False)]
    free = generate_from_ids(
        base, [prompt], Sampling(max_new_tokens=30), stops=Stops(base.tokenizer)
    ).tokens[0]
    stop = free[10]
    generation = generate_from_ids(
        base, [prompt], Sampling(max_new_tokens=30), stops=Stops(base.tokenizer, (stop,))
    )
    first = free.index(stop)
    assert generation.tokens[0] == free[: first + 1]
    assert generation.texts[0] == Stops(base.tokenizer).text(prompt, free[:first])


def test_generation_ignores_and_restores_the_settings_of_the_base(base):
    want = generate(base, PROMPTS, max_new_tokens=20).tokens
    own = base.model.generation_config
    own.repetition_penalty, own.max_length = 5.0, 7
    try:
        assert generate(base, PROMPTS, max_new_tokens=20).tokens == want
        assert base.model.generation_config is own
    finally:
        own.repetition_penalty = own.max_length = None


def test_the_seed_decides_the_samples_and_global_random_state_is_unchanged(base):
    state = torch.get_rng_state()
    settings = {"max_new_tokens": 20, "temperature": 1.0, "top_p": 0.9}
    first, second, other = (generate(base, PROMPTS, seed=s, **settings).tokens for s in (0, 0, 1))
    assert first == second != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_text_that_the_context_cuts_is_the_same_in_a_batch_and_alone(short):
    prompts = [[1, *range(10, 10 + n)] for n in (35, 30, 4, 30, 38)]
    sampling = Sampling(max_new_tokens=20)
    together = generate_from_ids(short, prompts, sampling, stops=stops_of(short))
    alone = [
        generate_from_ids(short, [p], sampling, stops=stops_of(short)).tokens[0] for p in prompts
    ]
    assert together.tokens == alone
    assert [len(t) for t in together.tokens] == [4, 9, 20, 9, 1]
    assert together.notices == [
        "the context of 40 tokens cut 4 texts",
        "1 text was cut after 20 tokens",
    ]


def test_prompts_that_cannot_be_continued_are_refused(base, short, small_base):
    with pytest.raises(DataError, match="1 of 2 prompts leave no room") as caught:
        generate(short, ["Tom", "Tom and Lily went to the park. " * 9])
    assert "number 2" in caught.value.facts["prompts"]
    with pytest.raises(DataError, match="prompt 2 is empty"):
        generate_from_ids(base, [[1], []], Sampling(), stops=Stops(base.tokenizer, (2,)))
    with pytest.raises(ConfigError, match="classifier"):
        generate(load_base(str(small_base), labels=["a", "b"]), ["Tom"])
    with pytest.raises(DataError, match="no chat template"):
        generate(base, ["Tom"], chat=True)


@pytest.mark.parametrize(
    "wrong", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"batch_size": 0}]
)
def test_settings_out_of_range_are_refused(base, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        generate(base, ["Tom"], **wrong)


# -- chat ---------------------------------------------------------------------------------------


@pytest.fixture
def talking(small_base):
    base = load_base(str(small_base))
    base.tokenizer.chat_template = TEMPLATE
    return base


def test_chat_renders_the_template_and_stops_at_its_end_of_turn(talking):
    assert end_of_turn(talking) == "</s>"
    assert stops_of(talking, ["</s>"]).tokens == (2,)
    (text,) = generate(talking, ["Hello"], chat=True, max_new_tokens=12).texts
    raw = "user: Hello</s>\nassistant: "
    ids = talking.tokenizer.encode(raw, add_special_tokens=False)
    assert (
        text
        == generate_from_ids(
            talking, [ids], Sampling(max_new_tokens=12), stops=stops_of(talking)
        ).texts[0]
    )


def test_a_conversation_streams_its_answers_and_keeps_the_messages(talking):
    chat = Chat(talking, system="Be kind.", sampling=Sampling(max_new_tokens=25))
    pieces: list[str] = []
    answer = chat.answer("Once upon a time", pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 5
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    chat.answer("And then?")
    assert len(chat.messages) == 4


def test_a_full_context_drops_the_oldest_messages_with_a_notice(talking):
    chat = Chat(talking, sampling=Sampling(max_new_tokens=60))
    for _ in range(6):
        chat.answer("Tom and Lily went to the park to play with the big dog. They ran and ran.")
    assert len(chat.messages) == 12
    assert any("messages are forgotten" in line for line in chat.notices)
    messages = list(chat.messages)
    with pytest.raises(DataError, match="context is 512"):
        chat.answer("Tom and Lily went to the park to play with the big dog. " * 40)
    with pytest.raises(DataError, match="empty"):
        chat.answer("  ")
    assert chat.messages == messages


def test_a_base_without_a_template_takes_each_message_as_a_prompt(base):
    chat = Chat(base, sampling=Sampling(max_new_tokens=10))
    assert (
        chat.answer("Once upon a time")
        == generate(base, ["Once upon a time"], max_new_tokens=10).texts[0]
    )
    assert chat.notices[0].startswith("the base has no chat template")


def test_an_incomplete_character_is_not_streamed(talking):
    """Each byte of the character is a token; it is printed when the last one is there."""
    prompt = [1, *talking.tokenizer.encode("Tom", add_special_tokens=False)]
    tokens = talking.tokenizer.encode("Tom é ü", add_special_tokens=False)[len(prompt) - 1 :]
    pieces: list[str] = []
    stops = Stops(talking.tokenizer, (2,))
    stream = stops.stream(prompt)
    for token in tokens:
        stream.push(token)
        pieces.append(stream.take())
    stream.end()
    pieces.append(stream.take())
    assert "".join(pieces) == stops.text(prompt, tokens)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_ignored_generation_settings_of_the_base_are_named(tmp_path):
    def notices():
        lines = generate(load_base(path), ["the cat"], max_new_tokens=2).notices
        return [line for line in lines if "generation settings" in line]

    model = tiny_model("llama")
    path = save_base(tmp_path, model)
    assert notices() == []
    model.generation_config.update(do_sample=True, temperature=0.6, stop_strings=["###"])
    model.save_pretrained(tmp_path)
    (notice,) = notices()
    for word in ("do_sample True", "temperature 0.6", "--temperature"):
        assert word in notice
    assert "stop_strings" not in notice  # they are used


def test_a_stop_string_of_the_base_ends_a_text_and_is_not_in_it(tmp_path, base):
    """In a batch, alone, and streamed."""
    prompts = ["Once upon a time", "The dog", "Tom and his mom went to the park"]
    free = generate(base, prompts, max_new_tokens=30).texts
    stop = free[0][12:17]
    stopped = copy.deepcopy(base)
    stopped.model.generation_config.stop_strings = [stop, "no such text"]
    stopped_texts = generate(stopped, prompts, max_new_tokens=30)
    assert stopped_texts.texts == [text.split(stop)[0] for text in free]
    assert stop in base.tokenizer.decode(stopped_texts.tokens[0])
    assert len(stopped_texts.tokens[0]) < 30
    assert sum("cut after" in line for line in stopped_texts.notices) == any(
        stop not in t for t in free
    )
    assert [
        generate(stopped, [p], max_new_tokens=30).texts[0] for p in prompts
    ] == stopped_texts.texts
    pieces: list[str] = []
    (ids,) = prompt_ids(
        [RenderedRow("prompt", (TextSpan(prompts[0], False),), False)], base.tokenizer
    )
    sampling = Sampling(max_new_tokens=30)
    generate_from_ids(stopped, [ids], sampling, stops=stops_of(stopped), on_text=pieces.append)
    assert "".join(pieces) == stopped_texts.texts[0]


@pytest.mark.parametrize("value", ["", [], [""], 3, [3], {"x": 1}, None, True])
def test_invalid_stop_strings_are_ignored(base, value):
    changed = copy.deepcopy(base)
    changed.model.generation_config.stop_strings = value
    assert (
        generate(changed, ["The dog"], max_new_tokens=5).texts
        == generate(base, ["The dog"], max_new_tokens=5).texts
    )
