"""Special tokens in a text: text, or control tokens. One rule for prompts, training text and scored
text.

`text` (the default everywhere): what somebody typed or what stands in a document is text.
`<|im_start|>` in it is
encoded as the characters it is written with and cannot steer the model. `control`: each special
token of the tokenizer
that is written out in the text becomes its one id. That is how a chat model is prompted and
trained.
"""

from typing import Literal

from lmsmith.errors import ConfigError
from lmsmith.tokens.tokenizer import Ids, Tokenizer

SpecialTokens = Literal["text", "control"]


def encode_text(
    tokenizer: Tokenizer, text: str | bytes, special_tokens: SpecialTokens = "text"
) -> Ids:
    """The ids (n,) of a text. Bytes are for BPE alone. Raises ConfigError as `check_control`
    does.
    """
    if special_tokens == "text":
        return tokenizer.encode(text)  # type: ignore[arg-type]
    check_control(tokenizer, special_tokens)
    return tokenizer.encode(text, allowed_special="all")  # type: ignore[arg-type, call-arg]


def check_control(tokenizer: Tokenizer, special_tokens: SpecialTokens) -> None:
    """Raises ConfigError where control tokens are asked for and the tokenizer has none with a
    name.
    """
    if special_tokens == "control" and not getattr(tokenizer, "special_tokens", {}):
        raise ConfigError(
            f"special tokens are to be control tokens, and this {tokenizer.kind} tokenizer has "
            f"none that could be "
            "written in a text. Leave the option out, or use a tokenizer that has some."
        )
