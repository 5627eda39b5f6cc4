"""GPT-2 in NumPy against transformers with PyTorch's autograd and AdamW, in float64."""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from lmsmith.reference.gpt2 import GPT2, Sizes
from lmsmith.reference.layers import crossentropy_forward

ODD = Sizes(n_layer=2, n_head=3, d_model=15, vocab_size=29, padded_vocab_size=29, context_length=11)
PADDED = Sizes(
    n_layer=2, n_head=2, d_model=14, vocab_size=29, padded_vocab_size=37, context_length=11
)
LONG = Sizes(
    n_layer=2, n_head=3, d_model=21, vocab_size=13, padded_vocab_size=13, context_length=151
)
# our name -> their name, and whether transformers stores it transposed
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
    """Weights large enough that attention is uneven and GELU is curved; also random gains and
    biases.
    """
    model = GPT2(sizes, dtype)
    rng = np.random.default_rng(5)
    for name, param in model.params.items():
        param[...] = rng.normal(1.0 if name in ("ln1w", "ln2w", "lnfw") else 0.0, 0.3, param.shape)
    return model


def batch_of(sizes: Sizes, B: int = 3, T: int = 0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(
        0, sizes.vocab_size, (B, (T or sizes.context_length) + 1)
    )
    return ids[:, :-1], ids[:, 1:]


class Theirs:
    """transformers' model with our weights; its tensors have our names."""

    def __init__(self, model: GPT2) -> None:
        import transformers  # slow

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

    def loss(self, inputs: np.ndarray, targets: np.ndarray) -> torch.Tensor:
        logits = self.model(torch.from_numpy(inputs)).logits
        return cross_entropy(
            logits.flatten(0, 1), torch.from_numpy(targets).flatten(), ignore_index=-1
        )

    def named(self, *, grads: bool = False) -> dict[str, np.ndarray]:
        """Parameters or gradients with our names and shapes."""
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
def test_loss_and_every_gradient_equal_transformers(sizes: Sizes) -> None:
    model, (inputs, targets) = model_of(sizes), batch_of(sizes)
    theirs = Theirs(model)
    wanted = theirs.loss(inputs, targets)
    wanted.backward()
    assert model.forward(inputs, targets) == pytest.approx(wanted.item(), rel=1e-12)
    model.zero_grad()
    model.backward()
    for name, grad in theirs.named(grads=True).items():
        np.testing.assert_allclose(
            model.grads[name], grad, rtol=0, atol=1e-9 * np.abs(grad).max(), err_msg=name
        )


@pytest.mark.parametrize("decay_all", [False, True])
@pytest.mark.parametrize("sizes", [ODD, PADDED])
def test_ten_steps_of_training_equal_pytorchs_adamw(sizes: Sizes, decay_all: bool) -> None:
    model = model_of(sizes)
    theirs = Theirs(model)
    matrices = [p for p in theirs.model.parameters() if p.dim() >= 2]
    others = [p for p in theirs.model.parameters() if p.dim() < 2]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.2 if decay_all else 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2)
    for step in range(10):
        inputs, targets = batch_of(sizes, seed=step)
        wanted = theirs.loss(inputs, targets)
        optimizer.zero_grad()
        wanted.backward()
        optimizer.step()
        assert model.forward(inputs, targets) == pytest.approx(wanted.item(), rel=1e-8)
        model.zero_grad()
        model.backward()
        model.update(1e-2, 0.8, 0.95, 1e-6, 0.2, decay_all=decay_all)
    for name, param in theirs.named().items():
        rows = (
            sizes.vocab_size if name == "wte" else None
        )  # padding, which they do not have, decays here
        np.testing.assert_allclose(
            model.params[name][:rows], param[:rows], rtol=0, atol=1e-8, err_msg=name
        )


def test_the_weight_decay_is_not_an_l2_penalty() -> None:
    model = model_of(ODD)
    before = {name: param.copy() for name, param in model.params.items()}
    model.forward(*batch_of(ODD))
    model.zero_grad()  # with a zero gradient, only the decay remains
    model.update(0.1, weight_decay=0.5)
    for name, param in model.params.items():
        share = 0.95 if name in ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw") else 1.0
        np.testing.assert_allclose(param, share * before[name], rtol=1e-15, err_msg=name)


def test_gradients_of_micro_batches_add_up_and_ignored_targets_do_not_count() -> None:
    inputs, targets = batch_of(ODD, B=4)
    targets = targets.copy()
    targets[0, 3:] = targets[3, :] = -1
    whole, parts = model_of(ODD), model_of(ODD)
    loss = whole.forward(inputs, targets)
    assert whole.n_targets == 3 + 2 * ODD.context_length
    whole.backward()
    total = 0.0
    for rows in (slice(0, 1), slice(1, 3), slice(3, 4)):
        total += parts.forward(inputs[rows], targets[rows]) * parts.n_targets
        parts.backward(1 / whole.n_targets)
    assert total / whole.n_targets == pytest.approx(loss, rel=1e-12)
    theirs = Theirs(whole)
    wanted = theirs.loss(inputs, targets)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-12)
    for name, grad in theirs.named(grads=True).items():
        for found in (whole, parts):
            np.testing.assert_allclose(
                found.grads[name], grad, rtol=0, atol=1e-9 * np.abs(grad).max(), err_msg=name
            )


def test_activations_do_not_depend_on_later_tokens() -> None:
    inputs, targets = batch_of(LONG, B=2)
    model = model_of(LONG)
    model.forward(inputs, targets)
    longer = {name: act.copy() for name, act in model.acts.items()}
    model.forward(inputs[:, :70], targets[:, :70])
    np.testing.assert_allclose(model.acts["losses"], longer["losses"][:, :70], rtol=1e-10)
    np.testing.assert_allclose(model.acts["att"], longer["att"][..., :70, :70], atol=1e-13)
    assert not np.triu(longer["att"], 1).any()
    np.testing.assert_allclose(longer["att"].sum(-1), 1, rtol=1e-12)


def test_the_tables_have_the_names_order_and_shapes_of_llmc() -> None:
    """As in train_gpt2.c, for sizes that are all different."""
    model = model_of(PADDED)
    model.forward(*batch_of(PADDED, B=5, T=9))
    B, T, V, L, NH, C, maxT = 5, 9, 37, 2, 2, 14, 11
    params = f"""wte {V},{C} wpe {maxT},{C} ln1w {L},{C} ln1b {L},{C} qkvw {L},{3 * C},{C} qkvb {L},{3 * C}
        attprojw {L},{C},{C} attprojb {L},{C} ln2w {L},{C} ln2b {L},{C} fcw {L},{4 * C},{C} fcb {L},{4 * C}
        fcprojw {L},{C},{4 * C} fcprojb {L},{C} lnfw {C} lnfb {C}"""
    a, b, c = f"{L},{B},{T},{C}", f"{L},{B},{T}", f"{L},{B},{NH},{T},{T}"
    acts = f"""encoded {B},{T},{C} ln1 {a} ln1_mean {b} ln1_rstd {b} qkv {L},{B},{T},{3 * C} atty {a} preatt {c} att {c}
        attproj {a} residual2 {a} ln2 {a} ln2_mean {b} ln2_rstd {b} fch {L},{B},{T},{4 * C} fch_gelu {L},{B},{T},{4 * C}
        fcproj {a} residual3 {a} lnf {B},{T},{C} lnf_mean {B},{T} lnf_rstd {B},{T} logits {B},{T},{V} probs {B},{T},{V}
        losses {B},{T}"""
    for table, wanted in ((model.params, params), (model.grads, params), (model.acts, acts)):
        words = wanted.split()
        assert [f"{name} {','.join(map(str, x.shape))}" for name, x in table.items()] == [
            f"{name} {shape}" for name, shape in zip(words[::2], words[1::2], strict=True)
        ]
        start = next(iter(table.values())).ctypes.data
        for x in table.values():  # end to end in one block
            assert x.ctypes.data == start
            start += x.nbytes
    assert (len(model.params), len(model.acts)) == (16, 23)


def test_memory_is_allocated_only_at_the_first_step() -> None:
    model, batch = model_of(LONG), batch_of(LONG, B=16)

    def step() -> None:
        model.forward(*batch)
        model.zero_grad()
        model.backward()
        model.update(1e-3)

    step()
    block = model.acts["encoded"].base
    tracemalloc.start()
    step()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert model.acts["encoded"].base is block
    assert (
        most < sum(act.nbytes for act in model.acts.values()) / 40
    )  # intermediate values of one text at a time


def test_in_float32_it_learns_and_stays_close_to_float64() -> None:
    exact, fast = GPT2(ODD, np.float64), GPT2(ODD, np.float32)
    exact.initialise(np.random.default_rng(3))
    for name, param in fast.params.items():
        param[...] = exact.params[name]
    losses = []
    for _ in range(30):
        inputs, targets = batch_of(ODD, B=4)
        losses.append((exact.forward(inputs, targets), fast.forward(inputs, targets)))
        for model in (exact, fast):
            model.zero_grad()
            model.backward()
            model.update(1e-2)
    assert fast.acts["probs"].dtype == np.float32
    assert losses[0][0] == pytest.approx(np.log(ODD.vocab_size), abs=0.05)
    assert losses[-1][1] < 1.5
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)


def test_threads_change_no_bit() -> None:
    one, four = (GPT2(LONG, np.float32, threads=threads) for threads in (1, 4))
    for model in (one, four):
        model.initialise(np.random.default_rng(3))
        model.forward(*batch_of(LONG, B=7))
        model.backward()
    np.testing.assert_array_equal(one.grads_block, four.grads_block)
    np.testing.assert_array_equal(one.acts["att"], four.acts["att"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("threads", [1, 2])
def test_overflow_gives_a_loss_that_is_not_finite_without_warnings(threads: int) -> None:
    model = GPT2(LONG, np.float32, threads=threads)
    model.initialise(np.random.default_rng(3))
    model.params["qkvw"] *= 1e25
    assert not np.isfinite(model.forward(*batch_of(LONG)))
    model.backward()
    model.update(1.0)
    assert np.isnan(model.params["qkvw"]).any()


def test_initial_weights_are_those_of_gpt2() -> None:
    model = GPT2(
        Sizes(
            n_layer=8,
            n_head=2,
            d_model=64,
            vocab_size=200,
            padded_vocab_size=200,
            context_length=100,
        )
    )
    model.initialise(np.random.default_rng(0))
    for name, param in model.params.items():
        if name in ("ln1w", "ln2w", "lnfw"):
            assert (param == 1).all()
        elif param.ndim == 1 or name.endswith("b"):
            assert (param == 0).all()
        else:
            assert param.std() == pytest.approx(
                0.005 if name in ("attprojw", "fcprojw") else 0.02, rel=0.03
            )


def test_probabilities_of_padding_are_zero() -> None:
    rng = np.random.default_rng(0)
    probs, logits, targets = (
        np.full((5, 7), 9.0),
        100 * rng.normal(size=(5, 7)),
        rng.integers(0, 4, 5),
    )
    losses = np.full(5, 9.0)
    crossentropy_forward(losses, probs, logits, targets, vocab_size=4)
    wanted = torch.from_numpy(logits[:, :4]).log_softmax(1).numpy()
    np.testing.assert_allclose(probs[:, :4], np.exp(wanted), rtol=1e-12)
    assert not probs[:, 4:].any()
    np.testing.assert_allclose(losses, -wanted[np.arange(5), targets], rtol=1e-12)


def test_ids_outside_the_vocabulary_fail_an_assertion() -> None:
    model = model_of(PADDED)
    inputs, targets = batch_of(PADDED)
    for bad in (-1, PADDED.vocab_size):  # even though padding has a row for it
        with pytest.raises(AssertionError):
            model.forward(np.full_like(inputs, bad), targets)
    with pytest.raises(AssertionError):
        model.forward(inputs, np.full_like(targets, PADDED.vocab_size))
    with pytest.raises(AssertionError):
        model.forward(*batch_of(PADDED, T=PADDED.context_length + 1))


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows does not say how much memory was used at most"
)
def test_babygpt_trains_within_a_gigabyte_and_a_half() -> None:
    """Runs in its own process, with a batch of 8 x 256 characters; it learns a text of four of
    them.
    """
    program = """
import resource, sys
import numpy as np
from lmsmith.reference.gpt2 import GPT2, Sizes
model = GPT2(Sizes(n_layer=6, n_head=6, d_model=384, vocab_size=65, padded_vocab_size=65, context_length=256))
model.initialise(np.random.default_rng(0))
assert model.sizes.n_params == 10_770_816
ids = np.resize(np.arange(8 * 257) % 4, (8, 257))
inputs, targets = ids[:, :-1], ids[:, 1:]
for _ in range(2):
    loss = model.forward(inputs, targets)
    model.zero_grad()
    model.backward()
    model.update(1e-3)
assert "torch" not in sys.modules
try:  # what getrusage says on Linux includes the process that started this one
    used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
except OSError:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(loss, used)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    loss, used = map(float, done.stdout.split())
    assert loss < 4
    assert used < 1.5e9
