"""Decoding GPT-2 124M with 8-bit weights: ours (int8) beside llama.cpp (Q8_0), in one run.

    python benchmarks/llama_cpp.py --tokenizer FOLDER [--rounds 3] [--tokens 64]

The weights are random, so the speed is all that is compared. Both use the same number of threads
and decode one sequence after a prompt of 16 tokens. They take turns; medians are reported. Prefill
is not counted. It needs xllamacpp and gguf.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lmsmith.config.presets import preset
from lmsmith.generate.cpu import CpuDecoder
from lmsmith.generate.weights import pack
from lmsmith.interop import gguf_exporting, gguf_llama_cpp, gguf_models
from lmsmith.models.gpt import GPT
from lmsmith.tokens.files import load_tokenizer

PROMPT = list(range(1000, 1016))


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--tokenizer", required=True, help="GPT-2's: a folder, or gpt2")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--tokens", type=int, default=64)
    given = options.parse_args()
    words = load_tokenizer(given.tokenizer)
    settings = {"model.vocab_size": words.vocab_size}
    config: Any = preset("gpt2").changed(settings, where="here").model
    model = GPT(config).eval()
    model.initialise(torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        said = dict(gguf_models.metadata("gpt2", config))
        said |= gguf_exporting._words(words, config, {}, None)
        full, tensors = gguf_models.completed("gpt2", config, dict(model.named_parameters()))
        gguf_exporting._write(path, "gpt2", said, full, tensors, "q8_0")
        server = gguf_llama_cpp._serve(str(path), 256)
        pack(model, "int8")
        decoder = CpuDecoder(model, n_slots=1)
        ours(decoder, 4)  # compiles
        theirs(server, 4)
        rounds = [(ours(decoder, given.tokens), theirs(server, given.tokens))
                  for _ in range(given.rounds)]  # fmt: skip
    for name, rates in zip(
        ("lmsmith int8", "llama.cpp Q8_0"), zip(*rounds, strict=True), strict=True
    ):
        shown = " ".join(f"{rate:.1f}" for rate in sorted(rates))
        print(f"{name:15} {statistics.median(rates):6.1f} tokens/s  ({shown})")
    print(f"threads: {torch.get_num_threads()}")


def ours(decoder: CpuDecoder, n: int) -> float:
    logits = decoder.prefill(0, PROMPT)
    begun = time.perf_counter()
    for _ in range(n):
        logits = decoder.step([0], [int(logits.argmax())])[0]
    return n / (time.perf_counter() - begun)


def theirs(server: Any, n: int) -> float:
    what = {"prompt": PROMPT, "n_predict": n, "ignore_eos": True, **gguf_llama_cpp._GREEDY}
    found: float = gguf_llama_cpp._ask(server, "/completion", what)["timings"][
        "predicted_per_second"
    ]
    return found


if __name__ == "__main__":
    main()
