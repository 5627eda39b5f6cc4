"""Our tasks beside transformers' model, and lm-evaluation-harness on our runs.

lm-eval has an environment of its own, because its requirements change those of the tests. In it,
`with_lm_eval.py` runs.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_run import lm, ours  # noqa: F401 - fixtures
from other_versions import python_with
from random_models import random_model

import lmsmith

PROJECT = Path(__file__).resolve().parent.parent.parent


def test_our_tasks_give_the_log_likelihoods_of_transformers(
    ours: Any,  # noqa: F811
    lm: lmsmith.LM,  # noqa: F811
) -> None:
    """One unpadded row for each ending, in their model."""
    theirs = random_model("gpt2", vocab_size=257)
    T, n_compared = lm.model.context_length, 0
    assert T is not None
    for result in ours:
        for item in result.items[:4]:
            for index, answer in enumerate(item.answers):
                context, ending = (text.encode() for text in item.item.pair(index))
                if len(ending) > T:
                    continue  # windows
                ids = torch.tensor([[*context, *ending][-(T + 1) :]])
                with torch.no_grad():
                    logs = theirs(ids[:, :-1]).logits[0].double().log_softmax(-1)
                logs = logs[-len(ending) :]
                wanted = logs.gather(1, ids[0, -len(ending) :, None]).sum()
                assert answer.log_likelihood == pytest.approx(float(wanted), abs=1e-4)
                assert answer.greedy == bool((logs.argmax(-1) == ids[0, -len(ending) :]).all())
                n_compared += 1
    assert n_compared > 15
    assert any(result.n_cut for result in ours)


@pytest.mark.slow
def test_the_harness_itself(request: pytest.FixtureRequest, test_data: Path) -> None:
    python = python_with("lm-eval", request)
    tests = Path(__file__).with_name("with_lm_eval.py")
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "HF_HUB_OFFLINE": "1",
        "LMSMITH_TEST_DATA": str(test_data),
    }
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", tests]
    done = subprocess.run(
        command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert re.search(r"^4 passed", done.stdout, re.MULTILINE), done.stdout[-2000:]
