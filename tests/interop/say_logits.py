"""python say_logits.py IDS.pt FOLDER...: writes the logits of this environment's
transformers to FOLDER/logits.pt.
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

ids = torch.load(sys.argv[1])
for folder in map(Path, sys.argv[2:]):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.save(model(ids).logits, folder / "logits.pt")
