"""Published runs: the table of docs/accounting.md is what the code predicts."""

from pathlib import Path

import lmsmith
from lmsmith.plan.published import retrodictions

PAGE = Path(lmsmith.__file__).parent.parent / "docs" / "accounting.md"


def test_the_documented_table_is_what_the_code_predicts() -> None:
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition("<!-- published -->")[2].partition("<!-- /published -->")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert rows == ["| " + " | ".join(row.cells()) + " |" for row in retrodictions()]


def test_memory_of_published_runs_is_within_15_percent() -> None:
    rows = [row for row in retrodictions() if row.figure == "GiB"]
    assert len(rows) == 3
    for row in rows:
        assert abs(row.error) < 0.15, row


def test_one_set_of_efficiencies_is_right_within_a_tenth_for_gpt2_with_flash_attention() -> None:
    errors = {row.name: row.error for row in retrodictions()}
    for name in ("GPT-2, float32", "GPT-2, TF32", "GPT-2, FlashAttention", "GPT-2, 8 A100, DDP"):
        assert abs(errors[name]) < 0.1, name
