"""Chat templates with the features of well-known models, written for these tests.

Each has one model family's behaviour in short: the text around messages, the handling of tools,
system texts and thinking, and the generation prompt.
"""

CALLS = (
    "{% for call in m.tool_calls or [] %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": ARGUMENTS}\n</tool_call>{% endfor %}'
)


def chatml(arguments: str = "{{ call.function.arguments | tojson }}", opens: bool = True) -> str:
    """ChatML (Qwen 2.5): tools in the system turn, calls as JSON."""
    ask = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}" if opens else ""
    return (
        "{% if tools %}<|im_start|>system\n# Tools\n{% for t in tools %}{{ t | tojson }}\n"
        "{% endfor %}<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ m.content }}" + CALLS.replace("ARGUMENTS", arguments) + "<|im_end|>\n{% endfor %}" + ask
    )


# Qwen 3: leaves out the thinking of answers before the last question; the last has an empty one.
QWEN3 = """{%- set ns = namespace(last=-1) %}
{%- for m in messages %}
{%- if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}
{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
{%- set content, thought = m.content, '' %}
{%- if m.reasoning_content is string %}{% set thought = m.reasoning_content %}
{%- elif '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- endif %}
{{- '<|im_start|>assistant\\n' }}
{%- if loop.index0 > ns.last and (loop.last or thought) %}
{{- '<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
{%- endif %}
{{- content + '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}
{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{%- endif %}"""

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)

GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for m in messages %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}<start_of_turn>"
    "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

# Mistral: no generation prompt, and the system text moves to the last question.
MISTRAL = (
    "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if system else messages) %}{% if m.role == 'user' %}[INST] "
    "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)

# Phi 3: EOS after the end of turn, but only at the end of the conversation.
PHI3 = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)

# DeepSeek: concatenates the arguments of a call as text, and cuts thinking off.
DEEPSEEK = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}<|User|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|Assistant|>{{ m.content.split('</think>')[-1] }}"
    "{% for call in m.tool_calls or [] %}{{ '<|call|>' + call.function.name + '\n```json\n' + "
    "call.function.arguments + '\n```' }}{% endfor %}<|eos|>"
    "{% elif m.role == 'tool' %}<|tool|>{{ m.content }}{% else %}{{ m.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|Assistant|>{% endif %}"
)

# GLM: no end of turn; an answer is followed by the header of the next role.
GLM = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

# Vision models: content is a list of parts; of all roles, or of all but the assistant.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% elif c.type == 'image' %}<image>{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 2: the system text inside the first question; BOS and EOS around every pair.
LLAMA2 = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in (messages[1:] if system else messages) %}{% if m.role == 'user' %}"
    "{{ bos_token }}[INST] {% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n"
    "{% endif %}{{ m.content }} [/INST]{% else %} {{ m.content }} {{ eos_token }}{% endif %}"
    "{% endfor %}"
)

# Vicuna: names of the speakers, and EOS after every answer.
VICUNA = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }}\n"
    "{% elif m.role == 'assistant' %}ASSISTANT: {{ m.content }}{{ eos_token }}\n"
    "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

# Alpaca as a chat template: headings, with EOS after every answer.
INSTRUCTION = (
    "{% for m in messages %}{% if m.role == 'user' %}### Instruction:\n{{ m.content }}\n\n"
    "{% elif m.role == 'assistant' %}### Response:\n{{ m.content }}{{ eos_token }}\n\n"
    "{% else %}{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)

# Indented lines without "-": the generation prompt ends in line breaks that no answer follows.
INDENTED = """{% for m in messages %}
    {% if m.role == 'user' %}
        {{ '<|user|>\n' + m.content }}
    {% else %}
        {{ '<|assistant|>\n' + m.content + '</s>' }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}
    {{ '<|assistant|>\n' }}
{% endif %}
"""

PARTS_ASKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}A: {{ m.content }}</s>{% else %}U: "
    "{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c['text'] }}{% endfor %}\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}A: {% endif %}"
)


def blocks(inside: str, behind: str = "", before: str = "") -> str:
    """A template with {% generation %} blocks: the text inside, behind and before them."""
    return (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>\n"
        + before
        + "{% generation %}"
        + inside
        + "{% endgeneration %}"
        + behind
        + "{% else %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )


# Name -> template, and the end of turn that it writes, with BOS <s> and EOS </s>.
STYLES = {
    "chatml": (chatml(), "<|im_end|>"),
    "llama 2": (LLAMA2, "</s>"),
    "llama 3": (LLAMA3, "<|eot_id|>"),
    "gemma": (GEMMA, "<end_of_turn>"),
    "phi 3": (PHI3, "<|end|>"),
    "glm": (GLM, ""),
    "vicuna": (VICUNA, "</s>"),
    "instruction": (INSTRUCTION, "</s>"),
    "parts": (PARTS, "<|im_end|>"),
}
