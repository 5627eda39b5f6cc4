"""A Transformer of lmsmith, for transformers 4.57 and 5.x.

`lmsmith export --to hf` copies this file next to the weights of models that transformers has no
class for. It needs PyTorch and transformers only.

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=50)

    x = embed(tokens)                         token, n-gram and position embeddings
    for each block:
        x = a x + b embed(tokens)             with residual_scalars
        x = x + attention(norm(x))
        x = x + feed_forward(norm(x))
    logits = head(norm(x))

With `norm_placement` "post", a block computes norm(x + attention(x)), then norm(x +
feed_forward(x)), and the head has no norm of its own. With "output" it computes x +
norm(attention(x)), then x + norm(feed_forward(x)).

The KV cache is transformers' DynamicCache. If the model has n-gram tables, which need the tokens
before, one more layer of the cache holds the token ids. Layers with a sliding window cache all
tokens and mask the older ones. Attention weights are not returned; `attn_implementation` has no
effect.

Shapes: B batch, T new tokens, S all tokens, D d_model, H query heads, G key-value heads, K d_head.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

QK_NORM_EPS = 1e-5
LLAMA3_LOW, LLAMA3_HIGH = 1.0, 4.0  # turns (rotations by 2 pi) in the original context

# transformers 5 renames `past_key_values` to `cache`.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


DEFAULTS = {
    "vocab_size": 257,
    "context_length": 256,
    "n_layer": 6,
    "n_head": 6,
    "n_kv_head": 0,  # 0: n_head
    "d_model": 384,
    "d_head": 0,  # 0: d_model / n_head
    "d_ff": 0,  # 0: 4 d_model
    "ngram_tables": (),  # n of each table of hashed n-grams
    "ngram_table_size": 8192,
    "norm": "rmsnorm",  # "layernorm", "rmsnorm" or "none"
    "norm_placement": "pre",  # "pre", "post" or "output"
    "norm_gain": False,
    "norm_eps": 1e-5,
    "embedding_norm": True,
    "positions": "rope",  # "learned", "rope" or "none"
    "rotary_base": 10000.0,
    "rotary_scaling": "none",  # "none", "linear" or "llama3"
    "rotary_factor": 1.0,
    "rotary_original_context": 0,
    "feed_forward": "relu2",  # "gelu", "gelu-tanh", "silu", "relu2", "swiglu" or "geglu"
    "bias": False,
    "attention_bias": "none",  # "none", "qkv" or "all"
    "tied_head": False,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "ngram_dropout": 0.0,
    "qk_norm": True,
    "window": 0,  # tokens that a layer marked S in window_pattern sees; 0: no such layer
    "window_pattern": "",  # one letter per layer, repeated; "": all L, the whole context
    "value_embedding_every": 0,  # every n-th layer, counted from the last; 0: none
    "residual_scalars": False,
    "logit_softcap": 15.0,  # 0: no cap
    "use_cache": True,
}


class LmsmithGPTConfig(PretrainedConfig):
    """The settings of the model, with lmsmith's names."""

    model_type = "lmsmith_gpt"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    attribute_map = {  # noqa: RUF012
        "hidden_size": "d_model",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "num_key_value_heads": "n_kv_head",
        "head_dim": "d_head",
        "intermediate_size": "d_ff",
        "max_position_embeddings": "context_length",
    }

    def __init__(self, **kwargs):
        for name, default in DEFAULTS.items():
            setattr(self, name, kwargs.pop(name, default))
        self.n_kv_head = self.n_kv_head or self.n_head
        self.d_head = self.d_head or self.d_model // self.n_head
        self.d_ff = self.d_ff or 4 * self.d_model
        # A tied head has no tensor of its own here, so transformers has nothing to tie.
        super().__init__(**{**kwargs, "tie_word_embeddings": False})

    def window_of(self, layer):
        """How many tokens this layer sees, including its own; 0: all."""
        pattern = self.window_pattern or "L"
        return self.window if pattern[layer % len(pattern)] == "S" else 0

    def has_value_embedding(self, layer):
        every = self.value_embedding_every
        return bool(every) and (self.n_layer - 1 - layer) % every == 0


class Norm(nn.Module):
    """LayerNorm, RMSNorm or the identity over the last axis, with optional gain and bias."""

    def __init__(self, config, gain=None):
        super().__init__()
        self.kind, self.eps = config.norm, config.norm_eps
        gain = config.norm_gain if gain is None else gain
        biased = gain and config.bias and self.kind == "layernorm"
        self.weight = nn.Parameter(torch.ones(config.d_model)) if gain else None
        self.bias = nn.Parameter(torch.zeros(config.d_model)) if biased else None

    def forward(self, x):
        if self.kind == "none":
            return x
        if self.kind == "layernorm":
            return F.layer_norm(x, (x.size(-1),), self.weight, self.bias, self.eps)
        y = F.rms_norm(x, (x.size(-1),), eps=self.eps)
        return y if self.weight is None else y * self.weight.to(y.dtype)


class NgramEmbedding(nn.Module):
    """The sum of embeddings of the last n tokens at every position, from hashed tables."""

    def __init__(self, config):
        super().__init__()
        self.orders, self.n_rows = config.ngram_tables, config.ngram_table_size
        self.dropout = config.ngram_dropout
        self.nothing = config.vocab_size  # stands for "no token" before the start of a text
        self.tables = nn.ModuleList(nn.Embedding(self.n_rows, config.d_model) for _ in self.orders)

    def forward(self, tokens, n_new):
        """`tokens` (B, S): all tokens so far, of which the last `n_new` are embedded."""
        n_before = max(self.orders) - 1
        padded = F.pad(tokens, (n_before, 0), value=self.nothing)
        start = padded.size(1) - n_new
        key = padded[:, start:] + 1
        total, tables = 0, iter(self.tables)
        for back in range(1, n_before + 1):  # a multiplicative hash, modulo 2**32
            key = (key * 0x9E3779B1 + padded[:, start - back : padded.size(1) - back] + 1) % 2**32
            if back + 1 in self.orders:
                mixed = (key ^ (key >> 15)) * 0x85EBCA6B % 2**32
                x = next(tables)((mixed ^ (mixed >> 13)) % self.n_rows)
                if self.dropout and self.training:  # each order of a position on its own
                    x = x * F.dropout(x.new_ones(*x.shape[:2], 1), self.dropout)
                total = total + x
        return total


class Rotary:
    """Rotates pairs of adjacent numbers by the angle position * frequency (Su et al. 2021)."""

    def __init__(self, config):
        K = config.d_head
        # Not a buffer: computed in float64 on the CPU, also while weights are on the meta device.
        frequency = config.rotary_base ** (
            -torch.arange(0, K, 2, dtype=torch.float64, device="cpu") / K
        )
        if config.rotary_scaling == "linear":
            frequency = frequency / config.rotary_factor
        elif config.rotary_scaling == "llama3":
            n_turns = config.rotary_original_context * frequency / (2 * math.pi)
            unscaled = ((n_turns - LLAMA3_LOW) / (LLAMA3_HIGH - LLAMA3_LOW)).clamp(0, 1)
            frequency = frequency * (unscaled + (1 - unscaled) / config.rotary_factor)
        at = torch.arange(config.context_length, dtype=torch.float64, device="cpu")
        angle = torch.outer(at, frequency)
        self.turns = torch.stack([angle.cos(), angle.sin()], dim=-1).unsqueeze(1)
        self.table = self.turns  # (context_length, 1, K/2, 2) on the last device used

    def at(self, positions, dtype):
        """cos and sin at `positions` (B, T), each (B, T, 1, K/2)."""
        dtype = torch.float64 if dtype == torch.float64 else torch.float32
        if self.table.device != positions.device or self.table.dtype != dtype:
            self.table = self.turns.to(dtype).to(positions.device)
        return self.table[positions].unbind(-1)

    @staticmethod
    def turn(x, turns):
        cos, sin = turns
        a, b = x.to(cos.dtype).unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped key-value heads."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.n_head, self.n_kv = layer, config.n_head, config.n_kv_head
        self.d_head, self.dropout = config.d_head, config.attention_dropout
        biases, K = config.attention_bias, config.d_head
        n_rows = (self.n_head + 2 * self.n_kv) * K
        self.qkv = nn.Linear(config.d_model, n_rows, bias=biases != "none")
        self.out = nn.Linear(self.n_head * K, config.d_model, bias=biases == "all")
        self.qk_gain = nn.Parameter(torch.ones(self.n_head)) if config.qk_norm else None
        gated = config.has_value_embedding(layer)
        d_gate = min(32, config.d_model)
        self.value_gate = nn.Linear(d_gate, self.n_kv, bias=False) if gated else None

    def forward(self, x, turns, mask, cache, values):
        """`mask` (B, 1, T, S): the keys that each query sees. `values`: value embeddings."""
        B, T, _ = x.shape
        qkv = self.qkv(x).view(B, T, -1, self.d_head)  # (B, T, H + 2 G, K)
        both, v = qkv.split((self.n_head + self.n_kv, self.n_kv), dim=2)
        if self.qk_gain is not None:
            both = F.rms_norm(both, (self.d_head,), eps=QK_NORM_EPS)
        if turns is not None:
            both = Rotary.turn(both, turns)
        q, k = both.split((self.n_head, self.n_kv), dim=2)
        if self.qk_gain is not None:
            q = q * self.qk_gain.to(q.dtype).unsqueeze(-1)
        if self.value_gate is not None:
            gate = 2 * torch.sigmoid(self.value_gate(x[..., : self.value_gate.in_features]))
            v = v + gate.unsqueeze(-1) * values.to(v.dtype).view(v.shape)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if cache is not None:
            k, v = cache.update(k, v, self.layer)
        k, v = (t.repeat_interleave(self.n_head // self.n_kv, dim=1) for t in (k, v))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


class FeedForward(nn.Module):
    """down(activation(up(x))); swiglu and geglu multiply two maps (Shazeer 2020)."""

    def __init__(self, config):
        super().__init__()
        self.kind = config.feed_forward
        n_maps = 2 if self.kind in ("swiglu", "geglu") else 1
        self.up = nn.Linear(config.d_model, n_maps * config.d_ff, bias=config.bias)
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.bias)

    def forward(self, x):
        h = self.up(x)
        if self.kind in ("swiglu", "geglu"):
            gate, h = h.chunk(2, dim=-1)
            h = (F.silu(gate) if self.kind == "swiglu" else F.gelu(gate)) * h
        elif self.kind == "relu2":
            h = F.relu(h).square()
        elif self.kind == "silu":
            h = F.silu(h)
        else:
            h = F.gelu(h, approximate="tanh" if self.kind == "gelu-tanh" else "none")
        return self.down(h)


class Block(nn.Module):
    """Attention and feed-forward layer, each with a residual connection."""

    def __init__(self, config, layer):
        super().__init__()
        self.norm_attention, self.norm_feed_forward = Norm(config), Norm(config)
        self.attention, self.feed_forward = Attention(config, layer), FeedForward(config)
        self.placement, self.dropout = config.norm_placement, config.dropout

    def forward(self, x, *inputs):
        if self.placement == "post":
            x = self.norm_attention(x + self.drop(self.attention(x, *inputs)))
            return self.norm_feed_forward(x + self.drop(self.feed_forward(x)))
        if self.placement == "output":
            x = x + self.drop(self.norm_attention(self.attention(x, *inputs)))
            return x + self.drop(self.norm_feed_forward(self.feed_forward(x)))
        x = x + self.drop(self.attention(self.norm_attention(x), *inputs))
        return x + self.drop(self.feed_forward(self.norm_feed_forward(x)))

    def drop(self, x):
        return F.dropout(x, self.dropout, self.training)


class LmsmithGPTForCausalLM(PreTrainedModel, GenerationMixin):
    """The Transformer with its head."""

    config_class = LmsmithGPTConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        D, V = config.d_model, config.vocab_size
        learned, scalars = config.positions == "learned", config.residual_scalars
        self.token_embedding = nn.Embedding(V, D)
        self.position_embedding = nn.Embedding(config.context_length, D) if learned else None
        self.ngram_embedding = NgramEmbedding(config) if config.ngram_tables else None
        self.embedding_norm = Norm(config, gain=False) if config.embedding_norm else None
        self.value_embeddings = nn.ModuleDict(
            {
                str(i): nn.Embedding(V, config.n_kv_head * config.d_head)
                for i in range(config.n_layer)
                if config.has_value_embedding(i)
            }
        )
        self.residual_scale = nn.Parameter(torch.ones(config.n_layer)) if scalars else None
        self.input_scale = nn.Parameter(torch.zeros(config.n_layer)) if scalars else None
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.final_norm = Norm(config) if config.norm_placement != "post" else None
        self.head = None if config.tied_head else nn.Linear(D, V, bias=False)
        self.rotary = Rotary(config) if config.positions == "rope" else None
        self.post_init()

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, 0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)

    def get_input_embeddings(self):
        return self.token_embedding

    def get_output_embeddings(self):
        return self.head

    def resize_token_embeddings(self, *args, **kwargs):
        raise NotImplementedError(
            "the vocabulary of an lmsmith model cannot be resized: value embeddings and the hashes "
            "of n-gram tables depend on its size"
        )

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        cache=None,
        inputs_embeds=None,
        output_attentions=None,
        output_hidden_states=None,
        return_dict=None,
        **kwargs,
    ):
        """Logits (B, T, V) of `input_ids` (B, T), which follow the tokens in the cache.

        `attention_mask` (B, S) is 0 at padding. `position_ids` (B, T): by default the number of
        tokens before that are not padding. Raises ValueError if a text is longer than the context.
        """
        if input_ids is None or inputs_embeds is not None or output_attentions:
            raise ValueError("this model needs input_ids and returns no attention weights")
        cache = past_key_values if cache is None else cache
        use_cache = self.config.use_cache if use_cache is None else use_cache
        cache = self._checked(cache, use_cache and not self.training)
        n_past, (B, T) = (0 if cache is None else cache.get_seq_length()), input_ids.shape
        seen = self._seen(input_ids, attention_mask, n_past + T)
        if position_ids is None:
            position_ids = (seen.long().cumsum(dim=1) - 1).clamp(min=0)[:, n_past:]
        position_ids = self._within_context(position_ids.expand(B, T), n_past + T)
        x = embedded = self._embed(input_ids, position_ids, seen[:, n_past:], cache)
        turns = None if self.rotary is None else self.rotary.at(position_ids, x.dtype)
        masks, states = self._masks(seen, T), [x]
        for i, block in enumerate(self.blocks):
            if self.residual_scale is not None:
                a, b = self.residual_scale[i].to(x.dtype), self.input_scale[i].to(x.dtype)
                x = a * x + b * embedded
            gated = block.attention.value_gate is not None
            values = self.value_embeddings[str(i)](input_ids) if gated else None
            x = block(x, turns, masks[self.config.window_of(i)], cache, values)
            states.append(x)
        x = x if self.final_norm is None else self.final_norm(x)
        logits = self._logits(x[:, -logits_to_keep:] if logits_to_keep else x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        hidden = (*states[:-1], x) if output_hidden_states else None
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=hidden, **{_CACHE: cache}
        )
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self, input_ids, attention_mask=None, past_key_values=None, cache=None, **kwargs
    ):
        cache = past_key_values if cache is None else cache
        n_past = 0 if cache is None else cache.get_seq_length()
        return {
            "input_ids": input_ids[:, n_past:],
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep", 0) or 0,
            _CACHE: cache,
        }

    def _seen(self, ids, mask, S):
        """Which of all tokens are not padding: bool (B, S)."""
        if mask is None:
            return ids.new_ones((len(ids), S), dtype=torch.bool)
        if mask.shape != (len(ids), S):
            raise ValueError(
                f"attention_mask has shape {tuple(mask.shape)}, expected {len(ids), S}"
            )
        return mask.bool()

    def _within_context(self, positions, S):
        """Raises ValueError if a position is beyond the context."""
        C = self.config.context_length
        if S > C and self.config.positions != "none" and int(positions.max()) >= C:
            raise ValueError(
                f"the text has {int(positions.max()) + 1} tokens, but the model's context is {C}: "
                "cut the text, or generate fewer tokens (max_new_tokens)"
            )
        return positions

    def _checked(self, cache, wanted):
        """The cache with a layer for token ids, if the model needs it. Changed in place."""
        if cache is None:
            cache = DynamicCache() if wanted else None
        elif type(cache) is not DynamicCache:
            raise ValueError(f"this model supports DynamicCache only, not {type(cache).__name__}")
        while cache is not None and len(cache.layers) <= self.config.n_layer:
            cache.layers.append(DynamicLayer())
        return cache

    def _embed(self, ids, positions, seen, cache):
        """The residual stream before the first block."""
        x = self.token_embedding(ids)
        if self.ngram_embedding is not None:
            tokens = ids.masked_fill(~seen, self.config.vocab_size)
            if cache is not None:
                tokens = tokens[:, None, :, None]
                tokens = cache.update(tokens, tokens, self.config.n_layer)[0][:, 0, :, 0]
            x = x + self.ngram_embedding(tokens, ids.size(1))
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions)
        x = F.dropout(x, self.config.dropout, self.training)
        return x if self.embedding_norm is None else self.embedding_norm(x)

    def _masks(self, seen, T):
        """By window, which keys (S) each of the last T queries sees: (B, 1, T, S)."""
        S = seen.size(1)
        keys = torch.arange(S, device=seen.device)
        queries = keys[S - T :, None]
        masks = {}
        for window in {self.config.window_of(i) for i in range(self.config.n_layer)}:
            mask = keys <= queries
            if window:
                mask = mask & (keys > queries - window)
            # A padding query sees itself: a softmax over nothing would be NaN.
            masks[window] = ((mask & seen[:, None, :]) | (keys == queries)).unsqueeze(1)
        return masks

    def _logits(self, x):
        """Logits in float32, with the soft cap."""
        weight = self.token_embedding.weight if self.head is None else self.head.weight
        logits = F.linear(x, weight)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits
