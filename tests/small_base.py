"""A small Llama that is built in the test: random weights, grouped queries, a tied head.

Its tokenizer is of SentencePiece's kind: a space in front of every text, bytes for characters
that it does not know, BOS 1 and EOS 2. It has no chat template. The weights are spread, so that
it writes varied texts of known words.
"""

from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

from lorica.core.draws import drawing

VOCABULARY = 360
BYTES = 3 + 256  # ids of special tokens and of single bytes; the words follow
WORDS = (
    "Once upon a time there was a little girl. Lily and her mom went to the big park. They saw "
    "a red ball and a dog. Tom had many big red balls and he liked milk and bones. The cat ran. "
)


def tokenizer() -> Any:
    own = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    own.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    own.decoder = decoders.Sequence(  # type: ignore[assignment]
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    own.train_from_iterator(WORDS.split(" "), trainer)
    own.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    with drawing(3):
        made = transformers.LlamaForCausalLM(config).eval()
    made.get_input_embeddings().weight.data[:BYTES] *= 0.05  # it writes words, hardly any bytes
    return made


def write(folder: Path) -> Path:
    """Write the base into `folder`. Returns: the folder."""
    model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
