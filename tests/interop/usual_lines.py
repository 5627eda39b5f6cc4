"""python usual_lines.py FOLDER AGAIN...: the usual lines of transformers' documentation on exported
models, as JSON by folder.

Imported to use the tests' version of transformers, run as a program for another version.
"""

import json
import sys
from pathlib import Path
from typing import Any

TEXT = "The cat sat."


def usual_lines(folder: Path, again: Path) -> dict[str, Any]:
    """Their results: ids by `alone`, `batch`, `mask`, `short`, `reopened`, text by `piped`.
    Saves into `again`.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    how = {"max_new_tokens": 8, "do_sample": False}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = {"alone": model.generate(**tokenizer(TEXT, return_tensors="pt"), **how)[0].tolist()}
    found["short"] = model.generate(**tokenizer("A", return_tensors="pt"), **how)[0].tolist()
    if tokenizer.pad_token is not None:
        batch = tokenizer([TEXT, "A"], return_tensors="pt", padding=True)
        found["mask"] = batch["attention_mask"].tolist()
        found["batch"] = model.generate(**batch, **how).tolist()
    as_pipelines_do: dict[str, Any] = {
        "skip_special_tokens": True,
        "clean_up_tokenization_spaces": True,
    }
    found["decoded"] = tokenizer.decode(found["alone"], **as_pipelines_do)

    model.save_pretrained(again)
    tokenizer.save_pretrained(again)
    reopened, reread = (
        AutoModelForCausalLM.from_pretrained(again),
        AutoTokenizer.from_pretrained(again),
    )
    found["reopened"] = reopened.generate(**reread(TEXT, return_tensors="pt"), **how)[0].tolist()

    pipe = pipeline("text-generation", model=str(folder), device="cpu")
    found["piped"] = pipe(TEXT, **how)[0]["generated_text"]
    return found


if __name__ == "__main__":
    pairs = zip(sys.argv[1::2], sys.argv[2::2], strict=True)
    print(json.dumps({one: usual_lines(Path(one), Path(again)) for one, again in pairs}))
