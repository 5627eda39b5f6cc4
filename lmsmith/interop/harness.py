"""EleutherAI's lm-evaluation-harness on a run.

    lmsmith eval RUN --harness hellaswag,arc_easy
    python -m lmsmith.interop.harness run --model lmsmith --model_args run=RUN --tasks hellaswag

The second form is lm-eval's own command line, where the model `lmsmith` is known. In a program of
your own, `import lmsmith.interop.harness` registers it with lm-eval, too.

`HarnessLM` implements the three requests of the harness. Log-likelihoods are computed as for our
own tasks (`lmsmith.evaluate.tasks.likelihoods`); texts of any length are scored as in `lmsmith
eval --text`. Needs the extra `eval`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lmsmith.errors import ConfigError, UsageError

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise UsageError(
        "the harness needs the package lm-eval: pip install 'lmsmith[eval]'."
    ) from error

from lmsmith.evaluate.tasks.encode import PairEncoder
from lmsmith.evaluate.tasks.likelihoods import log_likelihoods
from lmsmith.evaluate.tasks.task import TaskResult
from lmsmith.evaluate.texts import encode_documents, score_encoded
from lmsmith.generate.decode import continue_texts
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel

MAX_TOKENS = 256  # of a generated text, where the task does not say


class HarnessLM(LM):
    """A run as lm-evaluation-harness sees it."""

    def __init__(self, run: str | Path | TextModel, bos: bool | str = True, **_: Any) -> None:
        """`run`: its folder. `bos`: whether a text begins as in training; transformers' GPT-2
        begins without that token.

        Raises UsageError, CheckpointError, TokenizerError for a run that cannot be loaded.
        """
        super().__init__()
        if isinstance(run, TextModel):
            self.writer, self.boundaries = run, "stream"
        else:
            self.writer, content = TextModel.load(Path(run))
            self.boundaries = str(content.get("data", {}).get("documents", "stream"))
        self.bos = str(bos).lower() not in ("false", "0", "no")
        begin = self.writer.begin
        self.encoder = PairEncoder(self.writer.tokenizer, begin if self.bos else None)
        # A text without any context always begins with that token, in the harness as here.
        self.of_empty = PairEncoder(self.writer.tokenizer, begin)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(ln p, whether greedy decoding would write it) of each continuation."""
        texts = [request.args for request in requests]
        pairs = [
            (self.encoder if context else self.of_empty).pair(context, ending)
            for context, ending in texts
        ]
        answers = log_likelihoods(self.writer.model, pairs)
        return [(answer.log_likelihood, answer.greedy) for answer in answers]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """ln p of each text, in nats, in windows side by side."""
        model, tokenizer = self.writer.model, self.writer.tokenizer
        found = []
        for request in requests:
            (text,) = request.args
            encoded = encode_documents(tokenizer, [text], self.writer.begin)
            score = score_encoded(model, tokenizer, encoded, boundaries=self.boundaries)
            found.append(-score.nats)
        return found

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The continuation of each prompt, up to the first stop string."""
        texts = [""] * len(requests)
        by_options: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            by_options.setdefault(repr(sorted(request.args[1].items())), []).append(index)
        for some in by_options.values():
            options = requests[some[0]].args[1]
            prompts = [requests[index].args[0] for index in some]
            for index, text in zip(some, self._write(prompts, options), strict=True):
                texts[index] = text
        return texts

    def _write(self, prompts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Continuations with the same options."""
        stop = options.get("until") or []
        n = next(
            (int(options[name]) for name in ("max_gen_toks", "max_new_tokens") if name in options),
            MAX_TOKENS,
        )
        sampled = options.get("do_sample", False) and float(options.get("temperature", 1.0)) > 0
        sampling = Sampling(temperature=float(options.get("temperature", 1.0)) if sampled else 0)
        T = self.writer.model.context_length
        ids = [self.writer.encode(prompt, bos=self.bos) for prompt in prompts]
        if T is not None:  # room for the answer
            ids = [one[-max(1, T - min(n, T // 2)) :] for one in ids]
        found = continue_texts(
            self.writer.model,
            self.writer.tokenizer,
            ids,
            max_tokens=n,
            sampling=sampling,
            seed=1234,
            stop=[stop] if isinstance(stop, str) else [one for one in stop if one],
            ends=self.writer.ends,
        )
        return [texts[0] for texts in found]


register_model("lmsmith")(HarnessLM)


def run_harness(
    model: HarnessLM,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    shots: int = 0,
    folder: Path | None = None,
) -> list[TaskResult]:
    """Runs tasks of the harness. Metrics have its names; a filter follows a comma.

    `shots`: 0 leaves each task its own number. `folder`: task descriptions (.yaml) besides those of
    the harness. Raises ConfigError for a task that the harness does not have.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    if limit is not None and limit < 1:
        raise ConfigError(f"limit = {limit}: expected 1 or more items.")
    manager = TaskManager(include_path=None if folder is None else str(folder))
    if unknown := [name for name in tasks if not manager.match_tasks([name])]:
        raise ConfigError(
            f"lm-evaluation-harness has no task {unknown[0]!r}. `lm_eval ls tasks` lists its tasks;"
            " --task-data names a folder with descriptions of others."
        )
    found: Any = lm_eval.simple_evaluate(
        model,
        tasks=list(tasks),
        limit=limit,
        num_fewshot=shots or None,
        task_manager=manager,
        bootstrap_iters=1000,
    )
    return [
        TaskResult(
            name,
            int(found["n-shot"].get(name) or 0),
            _metrics(values),
            None,
            samples=tuple(_plain(s) for s in found["samples"][name]),
        )
        for name, values in found["results"].items()
        if name in found["samples"]
    ]


def _plain(value: Any) -> Any:
    """The value with other objects than those of JSON as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """`acc,none` -> acc, and `exact_match_stderr,strict` -> `exact_match,strict_stderr`."""
    metrics = {}
    for key, value in values.items():
        name, comma, kind = key.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        metric, is_error = name.removesuffix("_stderr"), name.endswith("_stderr")
        full = metric if kind == "none" else f"{metric},{kind}"
        metrics[full + "_stderr" * is_error] = float(value)
    return metrics


def main() -> None:
    """lm-eval's own command line; this module has registered `lmsmith`."""
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())


if __name__ == "__main__":
    main()
