"""Settings of LoRA, for fine-tuning with few learned values."""

from dataclasses import dataclass
from typing import Literal

from lmsmith.config.settings import check, setting


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2022): W + alpha / rank * B A; only A and B are learned."""

    rank: int = setting(0, "rank of the adapters; none: full fine-tuning", zero="none")
    alpha: float = setting(
        0.0, "scale of the adapters: alpha / rank; auto: twice the rank", zero="auto"
    )
    targets: tuple[Literal["q", "k", "v", "out", "gate", "up", "down"], ...] = setting(
        ("q", "k", "v", "out", "gate", "up", "down"),
        "matrices with an adapter: q, k, v and out of attention; gate, up and down of feed-forward",
    )
    embeddings: Literal["auto", "yes", "no"] = setting(
        "auto",
        "also learn the embedding tables and the head; auto: if a chat template adds tokens",
    )

    def __post_init__(self) -> None:
        check(self.rank >= 0, "lora.rank", self.rank, "none or more than 0")
        check(self.alpha >= 0, "lora.alpha", self.alpha, "auto or more than 0")
        check(bool(self.targets), "lora.targets", "none", "at least one matrix")

    @property
    def scale(self) -> float:
        """What the product of the adapters is multiplied by."""
        return self.width / self.rank

    @property
    def width(self) -> float:
        """alpha, with auto resolved."""
        return self.alpha or 2.0 * self.rank
