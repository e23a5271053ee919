"""Text to tokens: the byte-level BPE tokenizer, its chat template, and packed token streams.

Digits are single tokens, so a code is copied digit by digit and sums line up. Packing puts
documents end to end, each closed by the end token, and cuts rows of the context length; a row may
hold parts of several documents. Padding every document to the context was rejected: two thirds of
the work would be padding.
"""

import os
from array import array
from multiprocessing import get_context
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from world.dialogue import ASSISTANT, END, USER
from world.texts import documents

VOCABULARY = 2048
CONTEXT = 512  # tokens
EOS, PAD = "<|end_of_text|>", "<|pad|>"
SPECIALS = [EOS, PAD, USER, ASSISTANT, END]
STRANGE_KINDS = ("glossary", "copies", "pairs")  # made-up words and codes earn no tokens
CHUNK = 5000  # documents per work item
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('The roles are user and assistant, not ' + message['role'] + '.') }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)


def train_tokenizer(rows: int, seed: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE over `rows` documents of `seed`, without the strange kinds."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    plain = (
        _without_marks(text) for kind, text in documents(rows, seed) if kind not in STRANGE_KINDS
    )
    tokenizer.train_from_iterator(plain, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, END],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _without_marks(text: str) -> str:
    for mark in (USER, ASSISTANT, END):
        text = text.replace(mark, "\n")
    return text


def _encode_chunk(work: tuple[str, int, int, int]) -> bytes:
    """Token ids (two bytes each) of a run of documents, each closed by the end token."""
    path, seed, start, rows = work
    tokenizer = Tokenizer.from_file(path)
    end = tokenizer.token_to_id(EOS)
    assert end is not None  # train_tokenizer put it in
    ids = array("H")
    texts = [text for _, text in documents(rows, seed, start=start)]
    for encoded in tokenizer.encode_batch_fast(texts):
        ids.extend(encoded.ids)
        ids.append(end)
    return ids.tobytes()


def token_stream(tokenizer_file: Path, rows: int, seed: int, *, processes: int) -> bytearray:
    """Documents 0 to `rows` of `seed` as one stream of two-byte ids, however many processes."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = [
        (str(tokenizer_file), seed, start, min(CHUNK, rows - start))
        for start in range(0, rows, CHUNK)
    ]
    stream = bytearray()
    with get_context("spawn").Pool(processes) as pool:
        for part in pool.imap(_encode_chunk, work):
            stream += part
    return stream
