"""Reinforcement learning: the trainer's log-probabilities against those that the sampler drew from.

Temperature and truncation (top-k, top-p, min-p) are part of the distribution. A trainer that
leaves them out differentiates another policy than the one that gave the answers.
"""

from __future__ import annotations

from typing import Any

from lmsmith.chat.prepare import Speaker
from lmsmith.chat.rl import policy
from lmsmith.chat.rl.rollouts import Sampler, roll_out
from lmsmith.chat.rl.rows import Rows
from lmsmith.chat.rl.task import Judge
from lmsmith.chat.rl.tasks import ARITHMETIC
from lmsmith.chat.templates import ChatTemplate, known
from lmsmith.generate.sampling import Sampling
from lmsmith.tokens.extended import with_special_tokens
from lmsmith.tokens.tokenizer import ByteTokenizer
from lmsmith.verify.models import small_model
from lmsmith.verify.registry import apart, equivalence, package

SETTINGS = (Sampling(temperature=0.7), Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.01))


@equivalence("rollouts", "trainer's probabilities; sampler's", bound=1e-5)
def rollouts() -> float:
    package("jinja2", "lmsmith[chat]")
    tokenizer = with_special_tokens(ByteTokenizer(True), known("lmsmith").tokens)
    speaker = Speaker(tokenizer, ChatTemplate.named("lmsmith", tokenizer))
    model: Any = small_model("llama", vocab_size=tokenizer.vocab_size, context_length=64)
    worst = 0.0
    for sampling in SETTINGS:
        sampler = Sampler(model, speaker, frozenset([10]), sampling, 8)
        found = roll_out(
            sampler, ARITHMETIC, Judge.of(["digits"]), seed=3, number=0, n_prompts=3, group_size=4
        )
        rows = Rows.of(found.groups)
        kept = rows.kept if sampling.filters else None
        trained = policy.log_probabilities(
            model, rows.inputs, rows.targets, sampling.temperature, kept, None
        )
        worst = max(worst, apart(trained, rows.old))
    return worst
