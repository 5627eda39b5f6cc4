"""What a model costs, from its config alone: parameters and floating-point operations.

A matrix product of (m, k) and (k, n) counts 2 m k n operations; look-ups, norms and activations count nothing. A
backward pass costs twice its forward pass. Of causal attention only the half below the diagonal counts, as it is all
that is needed; PaLM's and nanoGPT's counts take the whole, twice as much.
"""

from lmsmith.config import ModelConfig


def matrix_parameters(config: ModelConfig) -> int:
    """Parameters that take part in matrix products: blocks and head, no tables, norms or biases.

    A tied head counts, as it is multiplied with; so do padded rows, for the same reason. Of a recurrent network a
    layer's gates multiply the token and the state.
    """
    if config.kind == "rnn":
        n_gates = {"elman": 1, "gru": 3, "lstm": 4}[config.cell]
        head = config.padded_vocab_size * (config.d_model + (not config.tied_head))
        return config.n_layer * n_gates * 2 * config.d_model**2 + head
    d, f = config.d_model, config.width_ff
    attention = d * 2 * (config.n_head + config.n_kv) * config.width_head
    feed_forward = (3 if config.gated else 2) * d * f
    n_gated = sum(config.has_value_embedding(layer) for layer in range(config.n_layer))
    gates = n_gated * config.n_kv * config.d_value_gate
    return config.n_layer * (attention + feed_forward) + gates + config.padded_vocab_size * d


def train_flops_per_token(config: ModelConfig) -> float:
    """Forward and backward: 6 a matrix parameter, and attention's two products over the tokens that are seen.

    Scores and values: 2 products x 2 S H K operations forward, where H heads of width K see S tokens, and three times
    that with the backward pass: 12 S H K a layer. Over a whole context, causally, S is T / 2 on average; over a window
    of w, w - w² / 2T.
    """
    if config.kind == "rnn":
        return 6.0 * matrix_parameters(config)
    T = config.context_length
    windows = (min(config.window_of(layer) or T, T) for layer in range(config.n_layer))
    seen = sum(window - window * window / (2 * T) for window in windows)
    return 6.0 * matrix_parameters(config) + 12.0 * seen * (config.n_head * config.width_head)
