"""Encodes special tokens in a text as text or as control tokens: one rule for prompts, training
text and scored text.

`text` (the default everywhere): special tokens in the text are plain characters. A user who types
`<|im_start|>` cannot control the model with it. `control`: each special token in the text becomes
its id. Chat models are prompted and trained this way.
"""

from typing import Literal

from lmsmith.errors import ConfigError
from lmsmith.tokens.tokenizer import Ids, Tokenizer

SpecialTokens = Literal["text", "control"]


def encode_text(
    tokenizer: Tokenizer, text: str | bytes, special_tokens: SpecialTokens = "text"
) -> Ids:
    """Returns the ids (n,) of a text. `text` can be bytes for BPE tokenizers only. Raises
    ConfigError as `check_control` does.
    """
    if special_tokens == "text":
        return tokenizer.encode(text)  # type: ignore[arg-type]
    check_control(tokenizer, special_tokens)
    return tokenizer.encode(text, allowed_special="all")  # type: ignore[arg-type, call-arg]


def check_control(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> None:
    """Raises ConfigError if `special_tokens` is "control" and the tokenizer has no special tokens
    that a text can contain.
    """
    if special_tokens == "control" and not getattr(tokenizer, "special_tokens", {}):
        raise ConfigError(
            f"special_tokens = 'control' needs a tokenizer with special tokens, and this "
            f"{tokenizer.kind} tokenizer has none that a text can contain. Leave the option out, "
            "or use a tokenizer that has some."
        )
