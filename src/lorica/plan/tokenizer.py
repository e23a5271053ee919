"""A tokenizer read by the package `tokenizers` alone, for counting: transformers takes seconds.

It has what lorica.data asks of a tokenizer of transformers, so that rows are rendered and encoded
by the same code as in training.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zlib import crc32

from lorica import strict_json
from lorica.errors import FileError

BOS, EOS = 0, 1
ESTIMATED = (
    "the base has no tokenizer.json here: tokens are estimated as 4 characters each, which is "
    "right within about 25 % for English text"
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")


class PlainTokenizer:
    """The tokenizer in tokenizer.json, with the special tokens of tokenizer_config.json."""

    truncation_side = "right"
    notices: tuple[str, ...] = ()

    def __init__(self, folder: Path):
        from tokenizers import Tokenizer

        file = folder / "tokenizer.json"
        try:
            self.backend_tokenizer: Any = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise FileError(
                f"{file} cannot be read: {error}.", fix="download the model's tokenizer.json again"
            ) from None
        self.backend_tokenizer.no_padding()
        self.backend_tokenizer.no_truncation()
        config = folder / "tokenizer_config.json"
        settings = strict_json.read(config, follow=True, finite=False) if config.is_file() else {}
        self.special_tokens_map = {
            name: text for name in SPECIAL if (text := _text(settings.get(name))) is not None
        }
        self.chat_template = _chat_template(folder, settings)

    def __call__(
        self, texts: str | Sequence[str], *, add_special_tokens: bool = True, **_: Any
    ) -> dict[str, Any]:
        every = [texts] if isinstance(texts, str) else list(texts)
        encoded = self.backend_tokenizer.encode_batch_fast(
            every, add_special_tokens=add_special_tokens
        )
        ids = [encoding.ids for encoding in encoded]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def get_vocab(self) -> dict[str, int]:
        return self.backend_tokenizer.get_vocab()

    def decode(self, ids: Sequence[int]) -> str:
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    def add_tokens(self, tokens: Sequence[str]) -> None:
        self.backend_tokenizer.add_tokens(list(tokens))

    def _id(self, name: str) -> int | None:
        text = self.special_tokens_map.get(name)
        return None if text is None else self.backend_tokenizer.token_to_id(text)

    @property
    def bos_token_id(self) -> int | None:
        return self._id("bos_token")

    @property
    def eos_token(self) -> str | None:
        return self.special_tokens_map.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    @property
    def unk_token_id(self) -> int | None:
        return self._id("unk_token")

    @property
    def all_special_ids(self) -> list[int]:
        return [i for name in self.special_tokens_map if (i := self._id(name)) is not None]


class CharacterTokenizer(PlainTokenizer):
    """Stands for the tokenizer of a base that has no tokenizer.json: a token for 4 characters."""

    notices = (ESTIMATED,)

    def __init__(self, folder: Path):
        self.backend_tokenizer = None
        self.special_tokens_map = {"bos_token": "<s>", "eos_token": "</s>"}
        self.chat_template = _chat_template(folder, {})

    def __call__(
        self, texts: str | Sequence[str], *, add_special_tokens: bool = True, **_: Any
    ) -> dict[str, Any]:
        every = [texts] if isinstance(texts, str) else list(texts)
        ids = [
            [BOS] * add_special_tokens
            + [2 + crc32(text[i : i + 4].encode()) % 65_000 for i in range(0, len(text), 4)]
            for text in every
        ]
        return {"input_ids": ids[0] if isinstance(texts, str) else ids}

    def __len__(self) -> int:
        return 65_002

    def get_vocab(self) -> dict[str, int]:
        return {"<s>": BOS, "</s>": EOS}

    def decode(self, ids: Sequence[int]) -> str:
        return "text" * len(ids)

    def add_tokens(self, tokens: Sequence[str]) -> None:
        """Their texts are estimated as well."""

    def _id(self, name: str) -> int | None:
        return {"bos_token": BOS, "eos_token": EOS}.get(name)


def open_tokenizer(folder: Path) -> PlainTokenizer:
    """The tokenizer of a base; without a tokenizer.json, an estimate of it, with a notice."""
    known = (folder / "tokenizer.json").is_file()
    return (PlainTokenizer if known else CharacterTokenizer)(folder)


def _text(token: Any) -> str | None:
    """A special token as tokenizer_config.json has it: a text, or an object with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _chat_template(folder: Path, settings: dict[str, Any]) -> Any:
    """The chat template: a text, or {name: text}; None: there is none."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}
    return template
