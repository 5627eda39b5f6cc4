"""MMLU: exam questions in 57 subjects, answered by a letter (Hendrycks et al. 2021).

Forms: the original folders of CSV files without a header (test/SUBJECT_test.csv, few-shot examples
in dev/SUBJECT_dev.csv); the Hub's Parquet, or .jsonl with the same fields (`question`, `subject`,
`choices`, `answer`: a number from 0, or a letter); or llm-foundry's .jsonl, whose `query` has the
options (`query`, `choices`, `gold`, `category`).

Few-shot examples have the question's subject. They are the first ones of the dev files; where there
are none, they are drawn from the other questions.

acc is over all questions; each subject has its own line in `groups`.
"""

from lmsmith.evaluate.tasks.task import ChoiceTask, Item, Row

LETTERS = "ABCD"


class Mmlu(ChoiceTask):
    name = corpus = "mmlu"
    what = "exam questions in 57 subjects, 4 answers"
    files = (
        "mmlu.jsonl",
        "mmlu_test.jsonl",
        "mmlu/test/*_test.csv",
        "data/test/*_test.csv",
        "test/*_test.csv",
        "mmlu/**/test*.parquet",
        "all/test*.parquet",
    )
    example_files = (
        "mmlu_dev.jsonl",
        "mmlu/dev/*_dev.csv",
        "data/dev/*_dev.csv",
        "dev/*_dev.csv",
        "mmlu/**/dev*.parquet",
        "all/dev*.parquet",
    )
    chance = 0.25

    def item(self, row: Row) -> Item:
        if "query" in row:
            query, gold = row["query"].rstrip(), int(row["gold"])
            question = query if query.endswith("Answer:") else f"{query}\nAnswer:"
            subject = str(row.get("category", row.get("subject", "")))
            return Item.choice(question, row["choices"], gold, group=subject)
        if "columns" in row:  # a line of CSV
            question, *choices, answer = row["columns"]
            subject = row["file"].removesuffix("_test").removesuffix("_dev")
            gold = LETTERS.index(answer.strip())
        else:
            question, choices = row["question"], row["choices"]
            subject, answer = str(row.get("subject", "")), str(row["answer"]).strip()
            gold = LETTERS.index(answer) if answer in tuple(LETTERS) else int(answer)
        if len(choices) != len(LETTERS):
            raise ValueError(f"{len(choices)} choices instead of {len(LETTERS)}")
        lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
        about = f" about {subject.replace('_', ' ')}" if subject else ""
        return Item.choice(
            "\n".join([question.strip(), *lines, "Answer:"]),
            list(LETTERS),
            gold,
            group=subject,
            intro=f"The following are multiple choice questions (with answers){about}.\n\n",
        )


MMLU = Mmlu()
