"""HellaSwag: which ending continues a scene? (Zellers et al. 2019)

Forms: the original .jsonl and the Hub's Parquet (`activity_label`, `ctx_a`, `ctx_b`, `endings`,
`label`), or `query`, `choices`, `gold`.
"""

import re

from lmsmith.evaluate.tasks.task import ChoiceTask, Item, Row


class HellaSwag(ChoiceTask):
    name = "hellaswag"
    what = "how does a scene continue? 4 endings"
    files = (
        "hellaswag.jsonl",
        "hellaswag_val.jsonl",
        "hellaswag/**/*val*.jsonl",
        "hellaswag/**/*val*.parquet",
    )
    corpus = "hellaswag"
    chance = 0.25

    def item(self, row: Row) -> Item:
        if "query" in row:
            return Item.choice(row["query"], row["choices"], int(row["gold"]))
        context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}"
        question = without_artifacts(f"{row['activity_label']}: {context}")
        endings = [without_artifacts(ending) for ending in row["endings"]]
        return Item.choice(question, endings, int(row["label"]))


def without_artifacts(text: str) -> str:
    """Removes what remains of WikiHow's markup, as lm-evaluation-harness does."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


HELLASWAG = HellaSwag()
