"""`model.kind` to the model: built anew, or from what it has learnt."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lmsmith.config import ModelConfig
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import LanguageModel, NeuralModel
from lmsmith.models.rnn import RNN


def build(config: ModelConfig) -> NeuralModel:
    """A model that gradients are to train, its weights not yet drawn. (N-grams are counted: `Ngram.learn`.)"""
    assert config.kind in ("gpt", "rnn")
    return RNN(config) if config.kind == "rnn" else GPT(config)


def restore(config: ModelConfig, tensors: Mapping[str, Tensor]) -> LanguageModel:
    """The model with these tensors in it, ready for use.

    Raises KeyError, ValueError or RuntimeError where they are not of such a model.
    """
    if config.kind == "ngram":
        from lmsmith.models.ngram import Ngram  # brings in the compiler, half a second others need not wait

        return Ngram.from_tensors(config, tensors)
    model = build(config)
    model.load_state_dict(dict(tensors))
    return model.eval()
