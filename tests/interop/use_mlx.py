"""Prints the logits of exported models in mlx-lm: python use_mlx.py IDS.json FOLDER..."""

import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx_lm.utils import load_model

asked, *folders = sys.argv[1:]
ids = mx.array(json.loads(Path(asked).read_text()))
found = {}
for folder in folders:
    model, _ = load_model(Path(folder), strict=True)
    found[folder] = model(ids).astype(mx.float32).tolist()
print(json.dumps(found))
