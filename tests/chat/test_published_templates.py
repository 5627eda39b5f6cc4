"""Templates with the structure of published ones: transformers gives the same ids."""

from pathlib import Path
from typing import Any

import pytest

from lmsmith.chat.conversations import Conversation, Message
from lmsmith.chat.masks import masked, prompt_ids, shown
from lmsmith.chat.templates import ChatTemplate, special_tokens
from lmsmith.errors import DataError
from lmsmith.interop import vocabulary
from lmsmith.interop.defaults import Defaults
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.extended import with_special_tokens

TEXT = "You are a helpful assistant. What is 2 + 2? It is four. <start_of_turn>user\n[INST]" * 3
BPE = learn_bpe([TEXT], 300)
SYSTEM = {"role": "system", "content": "Be brief, and\nkind. "}
ASK = {"role": "user", "content": " What is 2 + 2? "}
SAY = {"role": "assistant", "content": "It is four.\n"}
AGAIN = {"role": "user", "content": "Are you sure?"}
YES = {"role": "assistant", "content": "Yes"}

# Short versions of the programs that models are published with: the same statements, our own words.
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small model.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("roles must alternate user/assistant/user/assistant") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- else %}
        {{- raise_exception("only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""
ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}"
    "{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% else %}"
    "{% if loop.index0 > 5 %}{% break %}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
IM = ("<|im_start|>", "<|im_end|>")
# name: program, special tokens, bos, eos, whether it takes a system message, what an answer's
# learned text is
PUBLISHED: dict[str, tuple[str, tuple[str, ...], str, str, bool, str]] = {
    "qwen": (QWEN, IM, "", "<|im_end|>", True, "It is four.\n<|im_end|>"),
    "llama": (
        LLAMA,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        True,
        "It is four.<|eot_id|>",
    ),
    "smollm": (SMOLLM, IM, "<|im_start|>", "<|im_end|>", True, "It is four.\n<|im_end|>"),
    "mistral": (
        MISTRAL,
        ("<s>", "</s>", "[INST]", "[/INST]"),
        "<s>",
        "</s>",
        True,
        "It is four.</s>",
    ),
    "zephyr": (ZEPHYR, ("</s>",), "", "</s>", True, "It is four.\n</s>"),
    "gemma": (
        GEMMA,
        ("<bos>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        "<end_of_turn>",
        False,
        "It is four.<end_of_turn>",
    ),
    "marked": (MARKED, IM, "", "<|im_end|>", True, "It is four.\n<|im_end|>"),
}


def both(name: str, folder: Path) -> tuple[ChatTemplate, Any, Any]:
    """Our template, our tokenizer, and transformers' tokenizer with the template."""
    from transformers import AutoTokenizer

    source, tokens, bos, eos, _, _ = PUBLISHED[name]
    tokenizer = with_special_tokens(BPE, tokens)
    names = {part: text for part, text in (("bos_token", bos), ("eos_token", eos)) if text}
    defaults = Defaults(tokenizer=names, chat_templates={"default": source})
    vocabulary.save(tokenizer, folder, context_length=99, defaults=defaults)
    template = ChatTemplate(source, frozenset(special_tokens(tokenizer)), names)
    return template, tokenizer, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_transformers_gives_the_same_ids_with_published_structures(
    name: str, tmp_path: Path
) -> None:
    template, tokenizer, theirs = both(name, tmp_path)
    takes_system, said = PUBLISHED[name][4:]
    chats: list[list[Message]] = [[ASK], [ASK, SAY, AGAIN]]
    if takes_system:
        chats += [[SYSTEM, *chat] for chat in chats]
    for messages in chats:
        wanted = theirs.apply_chat_template(messages, add_generation_prompt=True)
        assert prompt_ids(messages, template, tokenizer) == wanted
        full = [*messages, YES]
        found = masked(Conversation(tuple(full)), template, tokenizer).ids.tolist()
        wanted = theirs.apply_chat_template(full)
        assert wanted[: len(found)] == found
        assert not theirs.decode(wanted[len(found) :]).strip()
    learned = shown(masked(Conversation((ASK, SAY)), template, tokenizer), tokenizer)
    assert [text for text, is_learned in learned if is_learned] == [said]


def test_what_published_templates_refuse_is_an_error_with_their_words(tmp_path: Path) -> None:
    for name, messages, words in (
        ("gemma", [SYSTEM, ASK, SAY], "System role not supported"),
        ("gemma", [ASK, AGAIN, SAY], "roles must alternate"),
        ("mistral", [ASK, AGAIN, SAY], "roles must alternate"),
    ):
        folder = tmp_path / f"{name}{len(messages)}{messages[0]['role']}"
        folder.mkdir()
        template, tokenizer, _ = both(name, folder)
        with pytest.raises(DataError, match=f"refuses it: .*{words}"):
            masked(Conversation(tuple(messages)), template, tokenizer)


def test_tools_and_their_answers_reach_a_published_template(tmp_path: Path) -> None:
    template, tokenizer, theirs = both("qwen", tmp_path)
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    messages = [ASK, SAY, {"role": "tool", "content": "4"}, {"role": "tool", "content": "5"}]
    wanted = theirs.apply_chat_template(messages, tools=[tool], add_generation_prompt=True)
    assert prompt_ids(messages, template, tokenizer, [tool]) == wanted
