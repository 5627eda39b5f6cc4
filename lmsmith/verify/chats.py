"""Masks of chats: what is learned is the assistant's text and the token that ends it."""

from __future__ import annotations

import random

from lmsmith.chat.conversations import Conversation
from lmsmith.chat.masks import masked, prompt_ids
from lmsmith.chat.templates import TEMPLATES, ChatTemplate, special_tokens
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.extended import with_special_tokens
from lmsmith.tokens.tokenizer import ByteTokenizer, Tokenizer
from lmsmith.verify.registry import equivalence, package, unequal

ENDS = {"lmsmith": "<|end|>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>"}
WORDS = ("Hello", "7", "it's", "line\nbreak", "naïve", "雪", "a  b", "<b>", "{{ x }}", "user")


def _conversations(n: int, specials: list[str]) -> list[Conversation]:
    """Random conversations, in which users and the assistant also type special tokens."""
    rng, found = random.Random(3), []
    for _ in range(n):
        turns = []
        if rng.random() < 0.5:
            turns.append({"role": "system", "content": rng.choice(WORDS)})
        for _ in range(rng.randint(1, 4)):
            for role in ("user", "assistant"):
                words = rng.choices([*WORDS, *specials], k=rng.randint(1, 5))
                turns.append({"role": role, "content": " ".join(words)})
        found.append(Conversation(tuple(turns)))
    return found


def _tokenizer(name: str) -> Tokenizer:
    package("jinja2", "lmsmith[chat]")
    return with_special_tokens(ByteTokenizer(True), TEMPLATES[name].tokens)


@equivalence("chat masks", "learned tokens; assistant's text", bound=0.0)
def chat_masks() -> float:
    worst = 0.0
    for name, end in ENDS.items():
        tokenizer = _tokenizer(name)
        template = ChatTemplate.named(name, tokenizer)
        specials = special_tokens(tokenizer)
        for conversation in _conversations(30, list(specials)):
            found = masked(conversation, template, tokenizer)
            learned = found.ids[found.learned]
            turns = [
                turn["content"] for turn in conversation.messages if turn["role"] == "assistant"
            ]
            expected: list[int] = []
            for text in turns:
                expected += [*tokenizer.encode(text).tolist(), specials[end]]
            worst = max(worst, unequal(learned.tolist(), expected))
    return worst


@equivalence("typed special tokens", "control tokens; those of the turns", bound=0.0)
def typed_special_tokens() -> float:
    """A special token in a message stays text: the number of control tokens depends only on the
    turns, and the prompt of an answer is the beginning of the conversation with it."""
    worst = 0.0
    for name in ENDS:
        tokenizer = _tokenizer(name)
        assert isinstance(tokenizer, BpeTokenizer)
        template = ChatTemplate.named(name, tokenizer)
        control = set(special_tokens(tokenizer).values())
        for conversation in _conversations(30, list(special_tokens(tokenizer))):
            turns = conversation.messages
            plain = [turn | {"content": "x"} for turn in turns]
            counts = [
                [id for id in prompt_ids(some, template, tokenizer) if id in control]
                for some in (turns[:-1], plain[:-1])
            ]
            worst = max(worst, unequal(*counts))
            prompt = prompt_ids(turns[:-1], template, tokenizer)
            ids = masked(conversation, template, tokenizer).ids.tolist()
            worst = max(worst, unequal(ids[: len(prompt)], prompt))
    return worst
