"""python use_custom_code.py FOLDER...: uses exported models with their own code, as transformers'
documentation does, and prints the results by folder as JSON.

Imported to use the tests' version of transformers, run as a program for another version.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

TEXTS = ["The cat sat.", "A"]
HOW: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False}


def used(folder: Path) -> dict[str, Any]:
    """`ids.pt` in the folder holds ids (B, T). Writes their logits to `logits.pt`."""
    trusted: dict[str, Any] = {"trust_remote_code": True, "local_files_only": True}
    tokenizer = AutoTokenizer.from_pretrained(folder, **trusted)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **trusted).eval()
    ids = torch.load(folder / "ids.pt")
    with torch.no_grad():
        torch.save(model(ids).logits, folder / "logits.pt")
    one, other, batch = (
        tokenizer(text, return_tensors="pt", padding=True) for text in (*TEXTS, TEXTS)
    )
    found = {
        "alone": model.generate(**one, **HOW)[0].tolist(),
        "other": model.generate(**other, **HOW)[0].tolist(),
        "without cache": model.generate(**one, use_cache=False, **HOW)[0].tolist(),
        "batch": model.generate(**batch, **HOW).tolist(),
        "beams": model.generate(**batch, num_beams=3, **HOW).tolist(),
        "beams without cache": model.generate(
            **batch, num_beams=3, use_cache=False, **HOW
        ).tolist(),
    }
    model.save_pretrained(folder / "again")
    tokenizer.save_pretrained(folder / "again")
    again = AutoModelForCausalLM.from_pretrained(folder / "again", **trusted)
    found["again"] = again.generate(**one, **HOW)[0].tolist()
    pipe = pipeline("text-generation", model=str(folder), trust_remote_code=True, device="cpu")
    found["piped"] = pipe(TEXTS[0], return_full_text=True, **HOW)[0]["generated_text"]
    found["decoded"] = tokenizer.decode(found["alone"], skip_special_tokens=True)
    output = model(ids, labels=ids)
    output.loss.backward()
    found["loss"] = output.loss.item()
    found["n gradients"] = sum(p.grad is not None for p in model.parameters())
    return found


if __name__ == "__main__":
    print(json.dumps({folder: used(Path(folder)) for folder in sys.argv[1:]}))
