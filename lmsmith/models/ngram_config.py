"""Settings of n-gram models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from lmsmith.config.model import ModelConfig
from lmsmith.config.settings import check, setting

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from lmsmith.models.ngram import Ngram


@dataclass(frozen=True)
class NgramConfig(ModelConfig):
    """Settings of n-gram models. The formulas are in `models/ngram.py`."""

    kind: str = setting("ngram", "model architecture; --preset sets it")
    order: int = setting(5, "n: length of the longest n-grams, including the predicted token")
    smoothing: Literal["kneser-ney", "add-k", "mle"] = setting(
        "kneser-ney", "interpolated modified Kneser-Ney, add-k, or maximum likelihood"
    )
    add_k: float = setting(0.1, "k of add-k smoothing: added to every count")

    description: ClassVar[str] = "n-gram model, counted in one pass"
    counted: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check(1 <= self.order <= 255, "model.order", self.order, "1 to 255")
        expected = "above 0 (for no smoothing set model.smoothing mle)"
        check(0 < self.add_k < math.inf, "model.add_k", self.add_k, expected)

    def learn(self, ids: npt.NDArray[np.unsignedinteger]) -> Ngram:
        """Counts the n-grams of `ids` (n,). Raises DataError if the text is too long."""
        from lmsmith.models.ngram import Ngram  # imports numba, which is slow

        return Ngram.learn(self, ids)

    def restore(self, tensors: Mapping[str, Tensor]) -> Ngram:
        from lmsmith.models.ngram import Ngram

        return Ngram.from_tensors(self, tensors)

    def in_brief(self) -> str:
        return f"{self.order}-gram, {self.smoothing}"

    def describe(self) -> str:
        return f"{self.order}-grams, smoothing {self.smoothing}"
