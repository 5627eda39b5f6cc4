"""A recurrent network of lmsmith (Elman network, GRU or LSTM), for transformers 4.57 and 5.x.

`lmsmith export --to hf` copies this file next to the weights, because transformers has no class for
such models. It needs PyTorch and transformers only.

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=50)

    embed -> n_layer recurrent layers, each with a state per text -> head -> logits

The cache of `generate` is the state after the tokens read so far (`RNNState`). It cannot go back to
an earlier token, so assisted generation is not available. Padding does not change the state.

Shapes: B batch, T new tokens, S all tokens, D d_model.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

KERNELS = {"elman": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}

# transformers 5 renames `past_key_values` to `cache`.
_CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class LmsmithRNNConfig(PretrainedConfig):
    """The settings of the model, with lmsmith's names."""

    model_type = "lmsmith_rnn"
    keys_to_ignore_at_inference = ("past_key_values", "cache")
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "n_layer"}  # noqa: RUF012

    def __init__(
        self,
        vocab_size=257,
        context_length=256,  # tokens of a training row; the model reads texts of any length
        n_layer=6,
        d_model=384,
        cell="lstm",  # "elman", "gru" or "lstm"
        activation="tanh",  # of an Elman network: "tanh" or "sigmoid"
        tied_head=False,
        dropout=0.0,
        logit_softcap=0.0,  # 0: no cap
        use_cache=True,
        **kwargs,
    ):
        self.vocab_size, self.context_length = vocab_size, context_length
        self.n_layer, self.d_model = n_layer, d_model
        self.cell, self.activation = cell, activation
        self.tied_head, self.dropout = tied_head, dropout
        self.logit_softcap, self.use_cache = logit_softcap, use_cache
        # A tied head has no tensor of its own here, so transformers has nothing to tie.
        super().__init__(**{**kwargs, "tie_word_embeddings": False})


class RNNState:
    """The states of all layers, each h or (h, c) of shape (B, D), after `n_read` tokens."""

    is_compileable = False

    def __init__(self):
        self.layers, self.n_read = None, 0

    def get_seq_length(self, layer_idx=0):
        return self.n_read

    def reorder_cache(self, beam_idx):
        """Selects rows, for beam search."""
        self.layers = [
            tuple(part.index_select(0, beam_idx.to(part.device)) for part in layer)
            for layer in self.layers
        ]
        return self


class Recurrent(nn.Module):
    """One recurrent layer."""

    def __init__(self, config):
        super().__init__()
        self.cell = config.cell
        self.activation = torch.tanh if config.activation == "tanh" else torch.sigmoid
        self.kernel = KERNELS[config.cell](config.d_model, config.d_model, batch_first=True)
        # nn.RNN has no logistic activation.
        self.uses_kernel = config.cell != "elman" or config.activation == "tanh"

    def forward(self, x, state, seen):
        """h after each position (B, T, D), and the state after the last. `seen` (B, T) is False at
        padding, or None without padding.
        """
        if self.uses_kernel and x.size(1) > 1 and seen is None:
            before = tuple(part[None].contiguous() for part in state)
            y, after = self.kernel(x, before if self.cell == "lstm" else before[0])
            return y, tuple(part[0] for part in after) if self.cell == "lstm" else (after[0],)
        y = []
        for t in range(x.size(1)):
            new = self.step(x[:, t], state)
            if seen is not None:
                keep = seen[:, t, None]
                new = tuple(torch.where(keep, a, b) for a, b in zip(new, state, strict=True))
            state = new
            y.append(state[0])
        return torch.stack(y, dim=1), state

    def step(self, x, state):
        """The state after one more token."""
        h = state[0]
        of_x = F.linear(x, self.kernel.weight_ih_l0, self.kernel.bias_ih_l0)
        of_h = F.linear(h, self.kernel.weight_hh_l0, self.kernel.bias_hh_l0)
        if self.cell == "elman":
            return (self.activation(of_x + of_h),)
        if self.cell == "gru":
            (r_x, z_x, n_x), (r_h, z_h, n_h) = of_x.chunk(3, dim=-1), of_h.chunk(3, dim=-1)
            r, z = torch.sigmoid(r_x + r_h), torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + r * n_h)
            return ((1 - z) * n + z * h,)
        i, f, g, o = (of_x + of_h).chunk(4, dim=-1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class LmsmithRNNForCausalLM(PreTrainedModel, GenerationMixin):
    """The recurrent network with its head."""

    config_class = LmsmithRNNConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(self, config):
        super().__init__(config)
        D, V = config.d_model, config.vocab_size
        self.token_embedding = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(Recurrent(config) for _ in range(config.n_layer))
        # The last column is the bias, multiplied by a constant one.
        self.head = None if config.tied_head else nn.Linear(D + 1, V, bias=False)
        self.post_init()

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # the state is not a KV cache

    def _init_weights(self, module):
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, 0.0, self.config.d_model**-0.5)
        elif isinstance(module, nn.RNNBase):
            for weight in module.parameters():
                nn.init.uniform_(weight, -(self.config.d_model**-0.5), self.config.d_model**-0.5)

    def get_input_embeddings(self):
        return self.token_embedding

    def get_output_embeddings(self):
        return None  # has one more column than the embeddings

    def resize_token_embeddings(self, *args, **kwargs):
        raise NotImplementedError("the vocabulary of an lmsmith model cannot be resized")

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
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
        """Logits (B, T, V) of `input_ids` (B, T), which follow the tokens in the state.

        `attention_mask` (B, S) is 0 at padding. Raises ValueError for a cache of another class.
        """
        if input_ids is None or inputs_embeds is not None or output_attentions:
            raise ValueError("this model needs input_ids and has no attention weights")
        state = past_key_values if cache is None else cache
        if state is not None and not isinstance(state, RNNState):
            raise ValueError(f"a recurrent model has no {type(state).__name__}: pass no cache")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if state is None:
            state = RNNState()
        B, T = input_ids.shape
        layers = state.layers or self._zeros(B)
        seen = None if attention_mask is None else attention_mask[:, -T:].bool()
        seen = None if seen is None or bool(seen.all()) else seen
        x = self._drop(self.token_embedding(input_ids))
        after, states = [], [x]
        for block, layer in zip(self.blocks, layers, strict=True):
            x, last = block(x, layer, seen)
            x = self._drop(x)
            after.append(last)
            states.append(x)
        state.layers, state.n_read = after, state.n_read + T
        logits = self._logits(x[:, -logits_to_keep:] if logits_to_keep else x)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            hidden_states=tuple(states) if output_hidden_states else None,
            **{_CACHE: state if use_cache and not self.training else None},
        )
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self, input_ids, attention_mask=None, past_key_values=None, cache=None, **kwargs
    ):
        state = past_key_values if cache is None else cache
        n_read = 0 if state is None else state.get_seq_length()
        return {
            "input_ids": input_ids[:, n_read:],
            "attention_mask": attention_mask,
            "use_cache": kwargs.get("use_cache"),
            "logits_to_keep": kwargs.get("logits_to_keep", 0) or 0,
            _CACHE: state,
        }

    def _zeros(self, B):
        weight = self.token_embedding.weight
        n_parts = 2 if self.config.cell == "lstm" else 1
        shape = (B, self.config.d_model)
        return [tuple(weight.new_zeros(shape) for _ in range(n_parts)) for _ in self.blocks]

    def _logits(self, x):
        """Logits in float32, with the soft cap."""
        if self.head is None:
            logits = F.linear(x, self.token_embedding.weight)
        else:
            logits = self.head(torch.cat([x, x.new_ones(*x.shape[:2], 1)], dim=-1))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def _drop(self, x):
        return F.dropout(x, self.config.dropout, self.training)
