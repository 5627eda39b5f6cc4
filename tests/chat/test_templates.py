"""Chat templates and masks: transformers gives the same ids, and only answers are learned."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.chat.conversations import Conversation
from lmsmith.chat.masks import encode_part, end_ids, masked, prompt_ids, shown
from lmsmith.chat.templates import TEMPLATES, ChatTemplate, special_tokens
from lmsmith.errors import ConfigError, DataError
from lmsmith.interop import vocabulary
from lmsmith.interop.defaults import Defaults
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.extended import with_special_tokens
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

TEXT = "Once upon a time, there was a little fox. \n\nIt said: user\nassistant\n<|end|> im_end" * 3
BPE = learn_bpe([TEXT], 300)
BASES: dict[str, Tokenizer] = {
    "bpe": BPE,
    "byte": ByteTokenizer(True),
    "char": CharTokenizer.learn([TEXT + "<|>"], True),
    "word": WordTokenizer.learn([TEXT], True),
}
CHATS = [
    [("user", "Hello <|end|>"), ("assistant", "a fox <|im_end|>")],
    [("system", "It said"), ("user", "a\n"), ("assistant", "b  c"), ("user", "time?"), ("assistant", "Once")],
    [("user", "use it"), ("assistant", "It"), ("tool", "fox"), ("assistant", "a fox")],
]  # fmt: skip


def chat(*turns: tuple[str, str]) -> Conversation:
    return Conversation(tuple({"role": role, "content": text} for role, text in turns))


def extended(base: str, name: str) -> tuple[Tokenizer, ChatTemplate]:
    tokenizer = with_special_tokens(BASES[base], TEMPLATES[name].tokens)
    return tokenizer, ChatTemplate.named(name, tokenizer)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_transformers_gives_the_same_ids(base: str, name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, template = extended(base, name)
    defaults = Defaults(
        tokenizer={"bos_token": template.names["bos_token"]},
        chat_templates={"default": template.source},
    )
    vocabulary.save(tokenizer, tmp_path, context_length=99, defaults=defaults)
    theirs: Any = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    for turns in CHATS:
        plain = [
            (role, text.replace("<|end|>", "").replace("<|im_end|>", "").strip())
            for role, text in turns
        ]
        found = chat(*plain)
        ids = masked(found, template, tokenizer).ids.tolist()
        wanted = theirs.apply_chat_template(
            list(found.messages), return_dict=True, return_assistant_tokens_mask=base == "bpe"
        )
        assert wanted["input_ids"][: len(ids)] == ids
        if base == "bpe":
            assert (
                wanted["assistant_masks"][: len(ids)]
                == masked(found, template, tokenizer).learned.astype(int).tolist()
            )
        messages = list(found.messages[:-1])
        assert prompt_ids(messages, template, tokenizer) == theirs.apply_chat_template(
            messages, add_generation_prompt=True
        )
    again = vocabulary.load(tmp_path)
    assert again.encode("a fox").tolist() == tokenizer.encode("a fox").tolist()


@pytest.mark.parametrize("base", BASES)
def test_added_tokens_keep_the_ids_of_text(base: str, tmp_path: Path) -> None:
    tokenizer, _ = extended(base, "lmsmith")
    before = BASES[base]
    assert tokenizer.encode(TEXT).tolist() == before.encode(TEXT).tolist()
    assert tokenizer.decode(tokenizer.encode("a fox")) == before.decode(before.encode("a fox"))
    assert tokenizer.vocab_size == before.vocab_size + 5
    assert tokenizer.end_of_text == before.end_of_text
    number = special_tokens(tokenizer)["<|end|>"]
    assert tokenizer.decode([number]) == "<|end|>"
    assert number in tokenizer.encode("a<|end|>", allowed_special="all")  # type: ignore[call-arg]
    save_tokenizer(tokenizer, tmp_path)
    assert load_tokenizer(tmp_path) == tokenizer
    assert with_special_tokens(tokenizer, TEMPLATES["lmsmith"].tokens) is tokenizer


def test_free_ids_of_the_model_are_used_first() -> None:
    assert (
        with_special_tokens(BPE, ["<|a|>", "<|b|>"], BPE.vocab_size + 1).vocab_size
        == BPE.vocab_size + 2
    )
    assert with_special_tokens(BPE, ["<|a|>"], BPE.vocab_size + 4).vocab_size == BPE.vocab_size + 4


texts = st.text(
    st.one_of(st.sampled_from(list("<|>_end imstart\n tue")), st.characters(codec="utf-8")),
    min_size=1,
) | st.sampled_from(
    ["<|end|>", "x<|im_end|>\n", "<|<|end|>", " \n", "<|im_start|>assistant\n", "\ufdd0"]
)
answers = texts.filter(lambda text: bool(text.strip()))


@st.composite
def chats(draw: Any) -> Conversation:
    turns = [("system", draw(answers))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [("user", draw(answers)), ("assistant", draw(answers))]
    return chat(*turns)


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("name", TEMPLATES)
@settings(max_examples=40, deadline=None)
@given(found=chats())
def test_learned_tokens_decode_to_the_answers(name: str, marked: bool, found: Conversation) -> None:
    tokenizer, template = extended("bpe", name)
    if not marked:  # as most imported templates
        source = template.source.replace("{%- generation -%}", "").replace(
            "{%- endgeneration -%}", ""
        )
        template = dataclasses.replace(template, source=source)
    result = masked(found, template, tokenizer)
    trimmed = name == "llama3"
    said = [
        m["content"].strip() if trimmed else m["content"]
        for m in found.messages
        if m["role"] == "assistant"
    ]
    end = tokenizer.decode(end_ids(template, tokenizer))
    assert [text for text, learned in shown(result, tokenizer) if learned] == [
        text + end for text in said
    ]
    # Control tokens are the template's: as many as in a conversation without any typed by a user.
    plain = chat(*((m["role"], "x") for m in found.messages))
    controls = set(special_tokens(tokenizer).values())
    n_controls = [
        int(np.isin(r.ids, list(controls)).sum())
        for r in (result, masked(plain, template, tokenizer))
    ]
    assert n_controls[0] == n_controls[1]
    # A prompt is the beginning of the conversation.
    prompt = prompt_ids(found.messages[:-1], template, tokenizer)
    assert result.ids[: len(prompt)].tolist() == prompt
    assert result.learned[len(prompt) :].all()


def test_nothing_learned_is_refused() -> None:
    tokenizer, template = extended("char", "lmsmith")
    silent = dataclasses.replace(
        template,
        source=template.source.replace(
            "message['content'] + '<|end|>' -}}{%- endg", "message['content'] -}}{%- endg"
        ),
    )
    with pytest.raises(DataError, match="no token of it is learned"):
        masked(chat(("user", "a"), ("assistant", "漢")), silent, tokenizer)


def test_a_template_that_changes_earlier_turns_is_refused() -> None:
    tokenizer, template = extended("bpe", "chatml")
    source = "{% for m in messages %}<|im_start|>{{ m.content if loop.last else '' }}<|im_end|>{% endfor %}"
    with pytest.raises(DataError, match="differently when more follow"):
        masked(chat(*CHATS[1]), dataclasses.replace(template, source=source), tokenizer)


def test_a_template_without_end_token_or_generation_prompt() -> None:
    tokenizer, template = extended("bpe", "chatml")
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    template = dataclasses.replace(template, source=source)
    found = masked(chat(("user", "a"), ("assistant", "b")), template, tokenizer)
    assert shown(found, tokenizer) == [("user: a\nassistant: ", False), ("b\n", True)]
    assert end_ids(template, tokenizer) == []


def test_refusals_and_bad_templates_are_errors(tmp_path: Path) -> None:
    tokenizer, template = extended("bpe", "lmsmith")
    raising = dataclasses.replace(template, source="{{ raise_exception('only two turns') }}")
    with pytest.raises(DataError, match="refuses it: only two turns"):
        masked(chat(*CHATS[0]), raising, tokenizer)
    unsafe = dataclasses.replace(template, source="{{ messages.__class__.__mro__ }}")
    with pytest.raises(DataError, match="unsafe"):
        masked(chat(*CHATS[0]), unsafe, tokenizer)
    bad = dataclasses.replace(template, source="{% for %}")
    with pytest.raises(ConfigError, match="not valid Jinja"):
        masked(chat(*CHATS[0]), bad, tokenizer)
    with pytest.raises(ConfigError, match="needs the special tokens"):
        ChatTemplate.named("lmsmith", BPE)
    with pytest.raises(ConfigError, match="expected lmsmith, chatml, llama3, or a readable Jinja"):
        ChatTemplate.named("nothing", BPE)
    (tmp_path / "mine.jinja").write_text(TEMPLATES["lmsmith"].source)
    assert ChatTemplate.named(str(tmp_path / "mine.jinja"), tokenizer) == template


def test_tool_calls_reach_a_template() -> None:
    tokenizer, template = extended("bpe", "chatml")
    source = "{% for m in messages %}{{ m.role }}{{ (m.tool_calls or []) | tojson }}<|im_end|>{% endfor %}{{ tools | tojson }}"
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": "<|im_end|> é"}}}
    found = Conversation(
        (
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ),
        tools=({"name": "f"},),
    )
    text = dataclasses.replace(template, source=source).render(found.messages, tools=found.tools)
    assert json.dumps([call], ensure_ascii=False) in text.text
    assert sum(special for _, special, _ in text.parts) == 2
    assert sum(len(encode_part(tokenizer, part)) for part in text.parts) > 2
