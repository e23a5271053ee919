"""Write the Modelfile from which Ollama builds a model out of GGUF files.

Ollama has templates in a language of its own (Go's). One that puts fixed texts around each message
is translated, by what it writes for probe conversations; any other is a notice.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorica.data.chat_template import ChatTemplate, chat_templates
from lorica.data.fields import BadRow
from lorica.errors import DataError
from lorica.formats import commit

SYSTEM, USER, ASSISTANT, LAST = "Wudrinop", "Qvexalu", "Zorbimat", "Fyldrona"


@dataclass(frozen=True)
class Turns:
    """The texts around messages. after_user: with what begins the answer.

    before_system, after_system: None: the template takes no system message.
    """

    before_user: str
    after_user: str
    after_assistant: str
    before_system: str | None = None
    after_system: str | None = None

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """The text that Ollama's template writes for messages that end with the user's."""
        around = {
            "user": (self.before_user, self.after_user),
            "assistant": ("", self.after_assistant),
            "system": (self.before_system or "", self.after_system or ""),
        }
        return "".join(around[m["role"]][0] + m["content"] + around[m["role"]][1] for m in messages)


def write_modelfile(
    output: Path, tokenizer: Any, model: str, adapter: str | None = None
) -> list[str]:
    """Write the Modelfile `output`, whole or not at all.

    tokenizer: transformers', with the chat template of training. model, adapter: GGUF files, as
    paths from the Modelfile's folder. Returns: notices.
    """
    lines = [f"FROM ./{model}", *([f"ADAPTER ./{adapter}"] if adapter else [])]
    notices = []
    if not tokenizer.chat_template:
        lines.append('TEMPLATE """{{ .Prompt }}"""')
    else:
        own, notices = _template_lines(tokenizer)
        lines += own
    commit.write_text(output, "\n".join(lines) + "\n")
    return notices


def _template_lines(tokenizer: Any) -> tuple[list[str], list[str]]:
    """TEMPLATE and the stop string of a chat template, and notices."""
    untranslated = (
        "the chat template has no translation for Ollama: check the TEMPLATE that `ollama show "
        "--modelfile` prints, or send finished prompts with raw: true"
    )
    try:
        template = chat_templates(tokenizer, kwargs={}).for_tools(None)
    except DataError:
        return [], [untranslated]
    lines, notices = [], []
    turns = turns_of(template, tokenizer.bos_token or "")
    if turns is None:
        notices.append(untranslated)
    else:
        lines.append(f'TEMPLATE """{go_template(turns)}"""')
        if turns.before_system is None:
            notices.append("the chat template has no system message: Ollama drops one")
    end = (template.end_of_turn or "").strip()
    if end and not set(end) & {'"', "\n"}:
        lines.append(f'PARAMETER stop "{end}"')
    return lines, notices


def turns_of(template: ChatTemplate, bos: str) -> Turns | None:
    """The texts around messages; None: the template does more than to put such texts.

    bos: the text of BOS, which llama.cpp adds by itself.
    """
    user, answer, last = (
        {"role": "user", "content": USER},
        {"role": "assistant", "content": ASSISTANT},
        {"role": "user", "content": LAST},
    )
    parts = _parts(template, [user, answer, last], [USER, ASSISTANT, LAST])
    if parts is None:
        return None
    first, after_user, between, end = parts
    before_user = first.removeprefix(bos)
    if after_user != end or not between.endswith(before_user):
        return None
    turns = Turns(before_user, after_user, between[: len(between) - len(before_user)])
    asked = {"role": "system", "content": SYSTEM}
    parts = _parts(template, [asked, user], [SYSTEM, USER])
    if parts is not None and parts[1].endswith(before_user) and parts[2] == end:
        after_system = parts[1][: len(parts[1]) - len(before_user)]
        turns = Turns(
            before_user,
            after_user,
            turns.after_assistant,
            parts[0].removeprefix(bos),
            after_system,
        )
    whole = turns.prompt([user, answer, last])
    unsafe = any(mark in whole + (turns.before_system or "") for mark in ("{{", '"""'))
    return None if unsafe else turns


def go_template(turns: Turns) -> str:
    """The turns in the language of Ollama's templates."""
    cases = [
        ("user", f"{turns.before_user}{{{{ .Content }}}}{turns.after_user}"),
        ("assistant", f"{{{{ .Content }}}}{turns.after_assistant}"),
    ]
    if turns.before_system is not None:
        cases.insert(0, ("system", f"{turns.before_system}{{{{ .Content }}}}{turns.after_system}"))
    branches = [
        f'{{{{ {"if" if i == 0 else "else if"} eq .Role "{role}" }}}}{text}'
        for i, (role, text) in enumerate(cases)
    ]
    return f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}"


def _parts(
    template: ChatTemplate, messages: list[dict[str, Any]], words: list[str]
) -> list[str] | None:
    """The texts before, between and behind the messages' words; None: it refuses or reorders."""
    try:
        text = template.prompt(messages)
    except (DataError, BadRow):
        return None
    parts = []
    for word in words:
        before, word_there, text = text.partition(word)
        if not word_there:
            return None
        parts.append(before)
    return [*parts, text]
