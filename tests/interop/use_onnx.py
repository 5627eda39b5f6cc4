"""python use_onnx.py TEXTS RUN...: exports runs to ONNX, continues texts (JSON) greedily with
onnxruntime alone, and prints ids and receipts as JSON by run.

Run in an environment that has onnx, onnxscript and onnxruntime.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

from lmsmith.interop.exporting import export_model


def greedy(session: onnxruntime.InferenceSession, text: str) -> list[int]:
    """With past key values: each call reads one token."""
    past = {}
    for entry in session.get_inputs()[1:]:
        shape = [size if isinstance(size, int) else 0 for size in entry.shape]
        kind = np.int64 if entry.type == "tensor(int64)" else np.float32
        past[entry.name] = np.zeros([1, *shape[1:]], kind)
    ids, new = list(text.encode()), list(text.encode())
    for _ in range(12):
        logits, *present = session.run(None, {"input_ids": np.array([new]), **past})
        past = dict(zip(past, present, strict=True))
        new = [int(logits[0, -1].argmax())]
        ids += new
        if new == [256]:
            break
    return ids


found = {}
for run in map(Path, sys.argv[2:]):
    out = run.with_name(f"{run.name} onnx")
    receipt = export_model(run, out, to="onnx")
    path = str(out / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = [greedy(session, text) for text in json.loads(sys.argv[1])]
    found[str(run)] = {"ids": ids, "receipt": receipt}
print(json.dumps(found))
