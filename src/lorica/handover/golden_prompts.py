"""The prompts whose answers an export records: the user's own rows, and fixed ones.

Fixed prompts are the same for all adapters of a base, so that answers of one can be told from those
of another; the user's rows show what the adapter was trained for, and how its answers end.
"""

from dataclasses import dataclass
from pathlib import Path

from lorica import plain_files
from lorica.base.load import LoadedModel
from lorica.data.config import DataConfig
from lorica.data.load import load_data
from lorica.data.prompt_format import with_training_templates
from lorica.data.rendered_row import RenderedRow, TextSpan
from lorica.data.text_encoder import prompt_ids
from lorica.errors import LoricaError
from lorica.evaluation.questions import question_set
from lorica.formats.golden import MAX_IDS
from lorica.formats.verify import PROBE
from lorica.generation.prompts import render_messages
from lorica.training.config import read as read_config

OWN_ROWS = 6
FIXED_ALONE = "the recorded answers are to fixed prompts alone"
MAX_PROMPT = 512
"""Tokens. Longer prompts make the file large, and are left out unless all are."""
FEW, ROOM = 3, 64
"""How many of those are taken, and the tokens that their answers may have."""


@dataclass(frozen=True)
class GoldenPrompt:
    """ids: of the prompt. text: as it is written; None: it was cut. messages: the conversation,
    where it is one."""

    ids: list[int]
    text: str | None
    messages: tuple[dict[str, str], ...] | None = None


def golden_prompts(loaded: LoadedModel, source: Path) -> tuple[list[GoldenPrompt], list[str]]:
    """(prompts, notices). source: a run or adapter folder; a run knows its rows."""
    own, notices = _own_prompts(loaded, source)
    fixed = [_fixed_prompt(loaded, text) for text in PROBE]
    context = min(loaded.max_length or MAX_IDS, MAX_IDS)
    limit = min(MAX_PROMPT, context // 2)
    prompts = sorted((p for p in (*own, *fixed) if p.ids), key=lambda p: len(p.ids))
    if prompts and len(prompts[0].ids) > limit:  # a template may write more than that by itself
        limit = context - ROOM
        prompts = prompts[:FEW]
    whole = [p for p in (*own, *fixed) if p in prompts and len(p.ids) <= limit]
    return whole or [_within(max(context // 2, 1), p) for p in prompts[:FEW]], notices


def _within(limit: int, prompt: GoldenPrompt) -> GoldenPrompt:
    """The beginning of a prompt that is too long: its ids alone, which no text gives."""
    return prompt if len(prompt.ids) <= limit else GoldenPrompt(prompt.ids[:limit], None)


def _fixed_prompt(loaded: LoadedModel, text: str) -> GoldenPrompt:
    """A prompt in the format of the adapter's training; where it is not known, the text alone."""
    form, messages = loaded.prompt_format, [{"role": "user", "content": text}]
    if form is None or form.kind == "text":
        row = RenderedRow("prompt", (TextSpan(text, False),), False)
    else:
        row = render_messages(loaded, messages)
    (ids,) = prompt_ids([row], loaded.tokenizer)
    conversation = tuple(messages) if form is not None and form.kind == "chat" else None
    return GoldenPrompt(ids, row.text, conversation)


def _own_prompts(loaded: LoadedModel, source: Path) -> tuple[list[GoldenPrompt], list[str]]:
    """Prompts of the first rows that a run was trained on, and a notice where they are missing."""
    if not plain_files.is_file(source / "config.yaml"):
        return [], [f"{FIXED_ALONE}: the folder is no run, and knows no rows"]
    try:
        config = read_config(source / "config.yaml").data
        changes = {"validation": 0.0, "limit": OWN_ROWS, "max_length": None, "overlong": "drop"}
        config = DataConfig.model_validate({**config.model_dump(), **changes})
        config = with_training_templates(loaded.prompt_format, config)
        data = load_data(config, loaded.tokenizer, seed=0, max_length=loaded.max_length, texts=True)
        questions = question_set(loaded, [data.train[i] for i in range(len(data.train))]).questions
    except LoricaError as error:
        return [], [f"{FIXED_ALONE}: the run's rows cannot be read ({error.summary})"]
    return [GoldenPrompt(q.prompt, q.row.prompt) for q in questions[:OWN_ROWS]], []
