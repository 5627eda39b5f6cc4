"""Run by the TRL tests in an environment that has TRL: the losses and gradients of its trainers.

    python use_trl.py GIVEN FOUND

GIVEN is a torch file with a list of cases. A case has the settings and tensors of a transformers
model, the trainer's name and options, and the batch: examples for the trainer's own collator, or
(GRPO) finished tensors. FOUND is the same list with `loss` and `gradients` added.
"""

import sys
import tempfile
from typing import Any

import torch
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# The trainers are created with a text of two words. The batches are given as ids.
TOKENIZER = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")),
    bos_token="a",
    pad_token="a",
    eos_token="b",
)
COLUMNS: dict[str, dict[str, list[Any]]] = {
    "SFT": {"text": ["a b"] * 8},
    "DPO": {"prompt": ["a"] * 8, "chosen": ["a"] * 8, "rejected": ["b"] * 8},
    "CPO": {"prompt": ["a"] * 8, "chosen": ["a"] * 8, "rejected": ["b"] * 8},
    "KTO": {"prompt": ["a"] * 8, "completion": ["a"] * 8, "label": [True, False] * 4},
    "GRPO": {"prompt": ["a"] * 8},
}


def model_of(settings: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Any:
    config = AutoConfig.for_model(**settings)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    known = model.state_dict()
    full = {n if n in known else f"{model.base_model_prefix}.{n}": t for n, t in tensors.items()}
    unexpected = model.load_state_dict(full, strict=False).unexpected_keys
    assert not unexpected, unexpected
    return model


def compute(case: dict[str, Any], folder: str) -> None:
    """Adds the loss and the gradients to the case."""
    name, options = case["trainer"], dict(case["options"])
    beta = options.pop("beta", 0.0) if name == "GRPO" else None  # with it, it loads a reference
    model = model_of(case["settings"], case["tensors"])
    more: dict[str, Any] = {}
    if name in ("DPO", "KTO"):
        more["ref_model"] = model_of(case["settings"], case["reference"])
    if name == "GRPO":
        more["reward_funcs"] = lambda completions, **_: [0.0] * len(completions)
        options["per_device_train_batch_size"] = len(case["inputs"]["advantages"])
    trainer = getattr(trl, f"{name}Trainer")(
        model=model,
        args=getattr(trl, f"{name}Config")(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to=[],
            gradient_checkpointing=False,
            **options,
        ),
        train_dataset=Dataset.from_dict(COLUMNS[name]),
        processing_class=TOKENIZER,
        **more,
    )
    model.double().eval().zero_grad()
    if name == "GRPO":
        trainer.current_gradient_accumulation_steps, trainer.beta = 1, beta
        loss = trainer._compute_loss(model, case["inputs"])
    else:
        if more:
            trainer.ref_model.double().eval()
        loss = trainer.compute_loss(model, trainer.data_collator(case["examples"]))
    loss.backward()
    case["loss"] = loss.item()
    prefix = f"{model.base_model_prefix}."
    case["gradients"] = {  # by the names of `tensors`
        name if name in case["tensors"] else name.removeprefix(prefix): p.grad.clone()
        for name, p in model.named_parameters()
        if p.grad is not None
    }


cases = torch.load(sys.argv[1], weights_only=False)
with tempfile.TemporaryDirectory() as place:
    for each in cases:
        compute(each, place)
torch.save([{key: each[key] for key in ("loss", "gradients")} for each in cases], sys.argv[2])
