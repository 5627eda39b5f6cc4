"""Old names of settings, which existing recipes and run folders may use."""

import logging
from collections.abc import Mapping
from typing import Any

log = logging.getLogger(__name__)

RENAMED = {
    "data.source": "data.mixture",
    "model.ngram_order": "model.order",
    "model.ngram_orders": "model.ngram_tables",
    "optim.table_learning_rate": "optim.embedding_learning_rate",
    "train.batch_ramp": "train.batch_warmup_fraction",
    "train.batch_start": "train.initial_batch_size",
    "train.carry_state": "train.truncated_bptt",
    "train.recompute": "train.activation_checkpointing",
    "train.start_from": "train.init_from",
}
"""Old dotted name -> today's."""

# Until version 0.1 one class held the settings of all model kinds. A config.json written then also
# holds the defaults of the other kinds' settings.
OF_EVERY_KIND = {
    *("cell", "activation", "ngram_order", "smoothing", "add_k", "size", "n_layer", "n_head"),
    *("n_kv_head", "d_model", "d_ff", "vocab_multiple", "context_length", "ngram_orders"),
    *("ngram_table_size", "norm", "norm_placement", "norm_gain", "norm_eps", "embedding_norm"),
    *("positions", "rope_base", "rope_scaling", "rope_factor", "rope_original_context"),
    *("feed_forward", "bias", "tied_head", "dropout", "attention_dropout", "ngram_dropout"),
    *("qk_norm", "window", "window_pattern", "value_embedding_every", "residual_scalars"),
    *("logit_softcap", "init", "order", "ngram_tables"),
}

_noted: set[str] = set()


def renamed(changes: Mapping[str, Any], where: str | Mapping[str, str]) -> dict[str, Any]:
    """Replaces old names by today's; logs a note about each old name once per process.

    If both names of a setting are given, the value under today's name counts. `where`: the source
    of the changes, one for all or one for each by name.
    """
    current = {name: value for name, value in changes.items() if name not in RENAMED}
    by_source: dict[str, list[str]] = {}
    for old in sorted(set(changes) & set(RENAMED)):
        current.setdefault(RENAMED[old], changes[old])
        by_source.setdefault(where if isinstance(where, str) else where[old], []).append(old)
    for source, names in by_source.items():
        _note(names, source)
    return current


def current_option(word: str) -> str:
    """Replaces the old name in `--OLD` or `--OLD=VALUE`; returns other words unchanged."""
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or name not in RENAMED:
        return word
    _note([name], "the command line")
    return f"--{RENAMED[name]}{equals}{value}"


def _note(names: list[str], where: str) -> None:
    """Logs one line for all names not yet noted, because an old run folder may hold many."""
    new = [old for old in names if old not in _noted]
    if new:
        _noted.update(new)
        pairs = ", ".join(f"{old} is now called {RENAMED[old]}" for old in new)
        log.warning("note: %s %s: %s", "on" if where == "the command line" else "in", where, pairs)
