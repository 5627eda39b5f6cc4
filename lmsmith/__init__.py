"""lmsmith trains language models from text: tokenization, training, evaluation, generation, export.

    import lmsmith

    run = lmsmith.train("book.txt", minutes=1)
    lm = lmsmith.load(run)
    print(lm.generate("It was", max_tokens=100))

    train, resume, demo     make a run: a folder with checkpoints, metrics and the model
    Run                     a run folder: its config, metrics, summary and report
    tune, align             tune a run's model on conversations; train it on preferences
    rl                      reinforcement learning from rewards of its answers
    load, LM                load a run's model; generate and score text with it, chat with it
    evaluate, compare       score models on text files
    report                  plots of runs in one HTML file
    plan                    predict memory, time and cost of a run before it starts
    prepare, Tokenizer      text to token shards; text to ids
    import_model, export    convert models from and to other programs
    extend, errors          base classes for extensions; the exceptions that lmsmith raises

Each name is imported when it is first used, so `import lmsmith` is fast and does not import torch.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmsmith import errors as errors
    from lmsmith import extend as extend
    from lmsmith.api import LM as LM
    from lmsmith.api import Run as Run
    from lmsmith.api import (
        align,
        compare,
        demo,
        evaluate,
        export,
        import_model,
        load,
        plan,
        prepare,
        report,
        resume,
        rl,
        train,
        tune,
    )
    from lmsmith.tokens.tokenizer import Tokenizer

__version__ = "0.1.0"

__all__ = [
    "Tokenizer",
    "align",
    "compare",
    "demo",
    "evaluate",
    "export",
    "import_model",
    "load",
    "plan",
    "prepare",
    "report",
    "resume",
    "rl",
    "train",
    "tune",
]

_MODULES = ("errors", "extend")
_ALSO = ("LM", "Run", *_MODULES)  # classes of what calls return, and modules
_ELSEWHERE = {"Tokenizer": "lmsmith.tokens.tokenizer"}  # all others are in lmsmith.api


def _public(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"lmsmith.{name}")
    return getattr(importlib.import_module(_ELSEWHERE.get(name, "lmsmith.api")), name)


def __getattr__(name: str) -> Any:
    if name not in __all__ and name not in _ALSO:
        raise AttributeError(f"module 'lmsmith' has no attribute {name!r}")
    globals()[name] = value = _public(name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ALSO})


class _Called(ModuleType):
    """A submodule with the name of a public function, such as lmsmith.train. A call of the module
    calls the function.

    Python sets a submodule as an attribute of its package when it is imported. Without this class,
    `lmsmith.train(...)` would fail after the first import of `lmsmith.train.loop`.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self.__wrapped__(*arguments, **options)

    @property
    def __wrapped__(self) -> Any:  # inspect.signature and help() read this attribute
        return _public(self.__name__.rpartition(".")[2])


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and name not in _MODULES and type(value) is ModuleType:
            value.__class__ = _Called
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
