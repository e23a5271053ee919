"""What ends an answer: in a conversation, and after a plain prompt."""

from lorica.base.load import load
from lorica.data.prompt_format import PromptFormat
from lorica.serve.prompts import Prompts

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}"
    "{% generation %}<|end|>{% endgeneration %}{% endif %}{% endfor %}"
)


def test_an_adapter_of_conversations_ends_at_its_end_of_turn_after_a_plain_prompt_too():
    loaded = load("bundled")
    loaded.tokenizer.add_tokens(["<|end|>"], special_tokens=True)
    end = loaded.tokenizer.convert_tokens_to_ids("<|end|>")
    form = PromptFormat(kind="chat", template=TEMPLATE, end_of_turn="<|end|>")
    of_chats = Prompts(loaded, form)
    assert end in of_chats.stops(True).tokens
    assert end in of_chats.stops(False).tokens
    assert end not in Prompts(loaded, None).stops(False).tokens
