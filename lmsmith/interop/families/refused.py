"""Architectures of transformers that `GPTConfig` cannot represent, with the reason."""

_EXPERTS = "a mixture of experts"

REFUSED: dict[str, tuple[str, str]] = {
    "BloomForCausalLM": ("ALiBi positions", "GPTNeoXForCausalLM"),
    "FalconForCausalLM": ("its own layout of queries, keys and values", "GPTNeoXForCausalLM"),
    "GPTJForCausalLM": ("one norm for both sublayers and a head with biases", "GPTNeoXForCausalLM"),
    "GemmaForCausalLM": (
        "embeddings scaled by the square root of the width, gains stored as the gain minus one and "
        "a gated gelu-tanh",
        "LlamaForCausalLM",
    ),
    "Gemma2ForCausalLM": (
        "scaled embeddings, gains stored as the gain minus one, norms before and after each "
        "sublayer and soft-capped attention scores",
        "Olmo2ForCausalLM",
    ),
    "Gemma3ForCausalLM": (
        "scaled embeddings, gains stored as the gain minus one, norms before and after each "
        "sublayer and two bases of RoPE",
        "Olmo2ForCausalLM",
    ),
    "Gemma3ForConditionalGeneration": ("an image encoder", "Olmo2ForCausalLM"),
    "GptOssForCausalLM": (f"{_EXPERTS} and attention sinks", "Qwen3ForCausalLM"),
    "MixtralForCausalLM": (_EXPERTS, "MistralForCausalLM"),
    "OlmoForCausalLM": ("layer norms without parameters and SwiGLU", "Olmo2ForCausalLM"),
    "Olmo3ForCausalLM": ("RoPE scaling in only some of its layers", "Olmo2ForCausalLM"),
    "OlmoeForCausalLM": (_EXPERTS, "Olmo2ForCausalLM"),
    "OPTForCausalLM": ("learned positions with an offset and ReLU", "GPT2LMHeadModel"),
    "PhiForCausalLM": ("one norm for both sublayers and a head with biases", "GPTNeoXForCausalLM"),
    "Phi3ForCausalLM": ("fused projections and two sets of frequencies", "MistralForCausalLM"),
    "Qwen2MoeForCausalLM": (_EXPERTS, "Qwen2ForCausalLM"),
    "Qwen3MoeForCausalLM": (_EXPERTS, "Qwen3ForCausalLM"),
}
"""Name -> (what it has that our model does not, the nearest architecture that is supported)"""
