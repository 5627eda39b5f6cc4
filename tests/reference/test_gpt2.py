"""GPT-2 by hand, held against transformers' with PyTorch's autograd and AdamW, in float64."""

import numpy as np
import pytest
import torch
import transformers

from lmsmith.reference.gpt2 import GPT2, Sizes

ODD = Sizes(n_layer=2, n_head=3, d_model=15, vocab_size=29, padded_vocab_size=29, context_length=11)
PADDED = Sizes(n_layer=2, n_head=2, d_model=14, vocab_size=29, padded_vocab_size=37, context_length=11)
LONG = Sizes(n_layer=2, n_head=3, d_model=21, vocab_size=13, padded_vocab_size=13, context_length=151)
# name here -> name there, and whether transformers keeps it transposed
THERE = {
    "wte": ("transformer.wte.weight", False),
    "wpe": ("transformer.wpe.weight", False),
    "ln1w": ("transformer.h.{}.ln_1.weight", False),
    "ln1b": ("transformer.h.{}.ln_1.bias", False),
    "qkvw": ("transformer.h.{}.attn.c_attn.weight", True),
    "qkvb": ("transformer.h.{}.attn.c_attn.bias", False),
    "attprojw": ("transformer.h.{}.attn.c_proj.weight", True),
    "attprojb": ("transformer.h.{}.attn.c_proj.bias", False),
    "ln2w": ("transformer.h.{}.ln_2.weight", False),
    "ln2b": ("transformer.h.{}.ln_2.bias", False),
    "fcw": ("transformer.h.{}.mlp.c_fc.weight", True),
    "fcb": ("transformer.h.{}.mlp.c_fc.bias", False),
    "fcprojw": ("transformer.h.{}.mlp.c_proj.weight", True),
    "fcprojb": ("transformer.h.{}.mlp.c_proj.bias", False),
    "lnfw": ("transformer.ln_f.weight", False),
    "lnfb": ("transformer.ln_f.bias", False),
}


def model_of(sizes: Sizes, dtype: type = np.float64) -> GPT2:
    """Weights large enough that attention prefers some positions and GELU bends; gains and biases too."""
    model = GPT2(sizes, dtype)
    rng = np.random.default_rng(5)
    for name, param in model.params.items():
        param[...] = rng.normal(1.0 if name in ("ln1w", "ln2w", "lnfw") else 0.0, 0.3, param.shape)
    return model


def batch_of(sizes: Sizes, B: int = 3, T: int = 0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, sizes.vocab_size, (B, (T or sizes.context_length) + 1))
    return ids[:, :-1], ids[:, 1:]


class Theirs:
    """transformers' model with the weights of ours, and what it finds by our names."""

    def __init__(self, model: GPT2) -> None:
        sizes = model.sizes
        config = transformers.GPT2Config(
            vocab_size=sizes.vocab_size,
            n_positions=sizes.context_length,
            n_embd=sizes.d_model,
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
        )
        self.sizes = sizes
        self.model = transformers.GPT2LMHeadModel(config).double()
        state = {}
        for name, param in model.params.items():
            there, transposed = THERE[name]
            for layer in range(sizes.n_layer):
                tensor = torch.from_numpy(param[layer] if "{}" in there else param).double()
                state[there.format(layer)] = (tensor.T if transposed else tensor)[
                    : sizes.vocab_size if name == "wte" else None
                ]
        missing, unexpected = self.model.load_state_dict(state, strict=False)
        assert not unexpected
        assert set(missing) <= {"lm_head.weight"}
        self.optimiser: torch.optim.Optimizer | None = None

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        logits = self.model(torch.from_numpy(inputs)).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten())

    def named(self, *, grads: bool = False) -> dict[str, np.ndarray]:
        """Parameters or gradients by our names, in our shapes."""
        found = dict(self.model.named_parameters())
        named = {}
        for name, (there, transposed) in THERE.items():
            layers = [found[there.format(layer)] for layer in range(self.sizes.n_layer)]
            tensors = [(p.grad if grads else p).detach() for p in layers]
            arrays = [(t.T if transposed else t).numpy() for t in tensors]
            named[name] = np.stack(arrays) if "{}" in there else arrays[0]
        rows = self.sizes.padded_vocab_size - self.sizes.vocab_size
        named["wte"] = np.pad(named["wte"], ((0, rows), (0, 0)))
        return named


@pytest.mark.parametrize("sizes", [ODD, PADDED, LONG])
def test_loss_and_every_gradient_are_those_of_transformers(sizes: Sizes) -> None:
    model, (inputs, targets) = model_of(sizes), batch_of(sizes)
    theirs = Theirs(model)
    wanted = theirs.loss(inputs, targets)
    wanted.backward()
    assert model.forward(inputs, targets) == pytest.approx(float(wanted), rel=1e-12)
    model.zero_grad()
    model.backward()
    for name, grad in theirs.named(grads=True).items():
        np.testing.assert_allclose(model.grads[name], grad, rtol=0, atol=1e-9 * np.abs(grad).max(), err_msg=name)
