"""Old names of settings, which recipes and run folders may still use."""

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

# Until version 0.1 one class held the settings of every kind, so a model's config.json names those
# of other kinds too, at their defaults.
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
    """The changes under today's names; notes each old name once per process.

    A name given both ways keeps its value under today's name. `where`: where all are from,
    or each by its name.
    """
    found = {name: value for name, value in changes.items() if name not in RENAMED}
    by_place: dict[str, list[str]] = {}
    for old in sorted(set(changes) & set(RENAMED)):
        found.setdefault(RENAMED[old], changes[old])
        by_place.setdefault(where if isinstance(where, str) else where[old], []).append(old)
    for place, names in by_place.items():
        _note(names, place)
    return found


def todays_option(word: str) -> str:
    """A word of the command line; `--OLD` or `--OLD=VALUE` with today's name."""
    name, equals, value = word.removeprefix("--").partition("=")
    if not word.startswith("--") or name not in RENAMED:
        return word
    _note([name], "the command line")
    return f"--{RENAMED[name]}{equals}{value}"


def _note(names: list[str], where: str) -> None:
    """One line about all names that were not noted before: an old run folder holds many of them."""
    new = [old for old in names if old not in _noted]
    if new:
        _noted.update(new)
        pairs = ", ".join(f"{old} is now called {RENAMED[old]}" for old in new)
        log.warning("note: %s %s: %s", "on" if where == "the command line" else "in", where, pairs)
