"""Whether an adapter can be served on a base: its kind, tokenizer, template, base, and answers.

Whether its method can be mixed in a batch is checked when it is prepared.
"""

import copy
import threading
from dataclasses import replace

from torch import nn

from lorica.base.digest import tokenizer_parts
from lorica.base.fingerprint import Fingerprint
from lorica.base.load import LoadedModel
from lorica.data.prompt_format import PromptFormat
from lorica.errors import BaseError, ConfigError, FileError, LoricaError, listed
from lorica.formats.adapter_file import AdapterFile
from lorica.formats.base_check import OTHER_TEMPLATE, check_base
from lorica.formats.golden import GOLDEN, read_golden
from lorica.formats.vocabulary import MAX_TEMPLATE, own_template, own_tokenizer
from lorica.generation.prompts import end_of_turn, render_messages
from lorica.serve.notes import notes_of
from lorica.serve.reading import Findings, Reader
from lorica.serve.self_test import self_test

MIN_BYTES = 64 * 2**20
"""Weights of an adapter may be as large as the base in float32, and at least this."""
PROBE = [{"role": "user", "content": "Hello"}]


class Examiner(Reader):
    """Reads adapters for one base, and refuses what cannot be served on it.

    loaded: the base. here: its fingerprint. twin: of the base, for self-tests alone.
    """

    def __init__(self, loaded: LoadedModel, here: Fingerprint, twin: nn.Module):
        super().__init__(max(MIN_BYTES, 4 * here.parameters))
        self._loaded, self._here, self._twin = loaded, here, twin
        self._testing = threading.Lock()  # one adapter at a time is on the twin

    def examine(self, file: AdapterFile) -> Findings:
        """Raises: ConfigError, BaseError, FileError that says why the adapter cannot be served."""
        _check_writes_text(file)
        notices = self._check_base(file)
        own = self._own_format(file)
        form = file.prompt_format or own
        if form is None and OTHER_TEMPLATE in notices:
            form = PromptFormat(kind="text")  # chat is refused: its template is not known
        self._check_format(file, form)
        golden = read_golden(file.folder)
        if golden and file.base is not None and not _same_numbers(file.base, self._here):
            notices.append(
                f"{GOLDEN} is not replayed: it was recorded on a base quantised otherwise"
            )
        elif golden:
            tokenizer, here = self._loaded.tokenizer, self._here
            with self._testing:
                self_test(self._twin, file, golden.rows, tokenizer=tokenizer, here=here)
        return Findings(form, tuple(notices), notes_of(file.folder))

    def _check_base(self, file: AdapterFile) -> list[str]:
        """Notices on the base. Raises: BaseError if it is another one."""
        if file.base is None:
            return ["its base cannot be verified: PEFT does not record it"]
        tokenizer = self._loaded.tokenizer
        try:
            notices = check_base(file.base, self._loaded.model, tokenizer, here=self._here)
        except BaseError as error:
            fix = "serve it on the base that it was trained on"
            raise BaseError(error.what, **error.facts, fix=fix) from None
        if file.prompt_format is not None:  # its own template is used
            notices = [notice for notice in notices if notice != OTHER_TEMPLATE]
        return notices

    def _own_format(self, file: AdapterFile) -> PromptFormat | None:
        """The chat template that PEFT or TRL left in the folder, if it is not the base's.

        Raises: ConfigError if the folder has a tokenizer that is not the base's.
        """
        before, own = self._loaded.tokenizer, own_tokenizer(file.folder)
        if own is not None and (other := _differing(own, before)):
            more = sorted(own.get_vocab().keys() - before.get_vocab().keys())
            raise ConfigError(
                f"{file.folder} has a tokenizer that is not the base's: {listed(other)}.",
                **({"new_tokens": listed(map(repr, more))} if more else {}),
                fix=f"serve it by itself: lorica merge {file.folder} --output OUT, then lorica "
                "serve OUT",
            )
        template = own_template(file.folder) if own is None else own.chat_template
        if not template or template == before.chat_template:
            return None
        return PromptFormat(kind="chat", template=template, eos=before.eos_token)

    def _check_format(self, file: AdapterFile, form: PromptFormat | None) -> None:
        """Raises: FileError unless a message can be written in the format."""
        if form is None:
            return
        if len(str(form.template)) > MAX_TEMPLATE:
            raise FileError(
                f"the template of {file.folder} has more than {MAX_TEMPLATE:,} characters.",
                fix="train the adapter with a shorter one",
            )
        if form.kind != "chat" and isinstance(form.template, dict):
            raise FileError(
                f"the template of {file.folder} is several templates, which only a chat has.",
                fix="copy the folder again",
            )
        tokenizer = self._loaded.tokenizer
        if form.kind == "chat":
            tokenizer = copy.copy(tokenizer)
            tokenizer.chat_template = form.template
        view = replace(self._loaded, tokenizer=tokenizer, prompt_format=form)
        try:
            end_of_turn(view)
            if form.kind != "text":
                render_messages(view, PROBE)
        except LoricaError as error:
            raise FileError(
                f"the template that {file.folder} was trained with cannot be used: {error.what}",
                **error.facts,
                fix="copy the folder again, or train the adapter with a template that works",
            ) from None


def _check_writes_text(file: AdapterFile) -> None:
    """Raises: ConfigError for a classifier, or an adapter of another task."""
    if file.labels is not None or file.task == "SEQ_CLS":
        raise ConfigError(
            f"{file.folder} is of a classifier: it writes no text.",
            fix="classify rows with lorica predict",
        )
    if file.task != "CAUSAL_LM":
        raise ConfigError(
            f"{file.folder} was trained for {file.task}: it writes no text.",
            fix="serve adapters that were trained for CAUSAL_LM",
        )


def _same_numbers(a: Fingerprint, b: Fingerprint) -> bool:
    """Whether two bases are quantised alike; others differ by more than the bound."""
    return (a.quantisation, a.double_quantisation) == (b.quantisation, b.double_quantisation)


def _differing(own: object, base: object) -> list[str]:
    """The parts in which two tokenizers differ."""
    a, b = tokenizer_parts(own), tokenizer_parts(base)
    return [key for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
