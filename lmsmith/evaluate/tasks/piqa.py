"""PIQA: how is an everyday task done? (Bisk et al. 2020)

Forms: the original valid.jsonl with valid-labels.lst beside it, the Hub's Parquet (`goal`, `sol1`,
`sol2`, `label`), or `query`, `choices`, `gold`.
"""

from lmsmith.evaluate.tasks.task import ChoiceTask, Item, Row


class Piqa(ChoiceTask):
    name = corpus = "piqa"
    what = "how is an everyday task done? 2 answers"
    files = ("piqa.jsonl", "piqa/**/valid*.jsonl", "piqa/**/valid*.parquet")
    chance = 0.5

    def item(self, row: Row) -> Item:
        if "query" in row:
            question, answers, gold = row["query"].rstrip("\n"), row["choices"], row["gold"]
        else:
            question, answers = f"Question: {row['goal']}", [row["sol1"], row["sol2"]]
            gold = row["label"]
        return Item.choice(f"{question}\nAnswer:", answers, int(gold))


PIQA = Piqa()
