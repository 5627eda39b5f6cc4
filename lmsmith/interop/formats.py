"""What each format of `export` can hold, and which preset to train for it.

| format | programs | models |
|---|---|---|
| hf | transformers | Transformers and recurrent networks: as a class of transformers or with code |
| gguf | llama.cpp | presets llama, qwen3 and gpt2, with a byte-pair tokenizer |
| llmc | llm.c | preset gpt2 |
| onnx | onnxruntime | Transformers |
"""

from __future__ import annotations

from lmsmith.config import ModelConfig
from lmsmith.config.presets import PRESETS
from lmsmith.errors import ConfigError
from lmsmith.interop import custom
from lmsmith.interop.architectures import architecture_for

_FOR_OTHERS = ("llama", "qwen3", "gpt2")


def presets_for_others() -> str:
    """The presets to train for llama.cpp and vLLM, which run only known architectures."""
    names = [name for name in _FOR_OTHERS if name in PRESETS.names()]
    return f"{', '.join(names[:-1])} or {names[-1]}"


def note(model: ModelConfig) -> str | None:
    """One sentence for the start of training, about a model that cannot be exported as a class of
    transformers. None for the others.
    """
    try:
        architecture_for(model)
        return None
    except ConfigError:
        pass
    try:
        custom.needed_for(model)
        how = "it is exported to transformers with its own code, and llama.cpp cannot run it"
    except ConfigError:
        how = "it cannot be exported"
    return (
        f"transformers and llama.cpp have no class for this model: {how}. To train one for them, "
        f"use --preset {presets_for_others()}"
    )
