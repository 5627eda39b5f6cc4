"""ARC, easy and challenge: school science questions (Clark et al. 2018).

Forms: the original .jsonl (`question.stem`, `question.choices`, `answerKey`), the Hub's Parquet
(`question`, `choices`, `answerKey`), or `query`, `choices`, `gold`.
"""

from lmsmith.evaluate.tasks.task import ChoiceTask, Item, Row


class Arc(ChoiceTask):
    chance = None  # a few questions have 3 or 5 choices

    def item(self, row: Row) -> Item:
        if "query" in row:
            question, answers, gold = row["query"], row["choices"], int(row["gold"])
            return Item.choice(f"{question.rstrip()}\nAnswer:", answers, gold)
        question = row["question"]
        if isinstance(question, dict):
            question, choices = question["stem"], question["choices"]
        else:
            choices = row["choices"]
        if isinstance(choices, dict):  # columns, as on the Hub
            texts, labels = choices["text"], choices["label"]
        else:
            texts, labels = zip(*((one["text"], one["label"]) for one in choices), strict=True)
        gold = list(labels).index(row["answerKey"])
        return Item.choice(f"Question: {question}\nAnswer:", list(texts), gold)


class ArcEasy(Arc):
    name, corpus = "arc_easy", "arc-easy"
    what = "school science questions, easier set; mostly 4 answers"
    files = (
        "arc_easy.jsonl",
        "**/ARC-Easy-Test.jsonl",
        "**/ARC-Easy/test*.parquet",
    )


class ArcChallenge(Arc):
    name, corpus = "arc_challenge", "arc-challenge"
    what = "school science questions, harder set; mostly 4 answers"
    files = (
        "arc_challenge.jsonl",
        "**/ARC-Challenge-Test.jsonl",
        "**/ARC-Challenge/test*.parquet",
    )


ARC_EASY, ARC_CHALLENGE = ArcEasy(), ArcChallenge()
