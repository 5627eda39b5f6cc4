r"""GSM8K: word problems that the model solves in writing (Cobbe et al. 2021).

exact_match: the number behind "####", the form of the training set's solutions. exact_match_last:
the last number in the text, whatever stands before it.

Forms: the original test.jsonl and the Hub's Parquet (`question`, `answer`), or `context`,
`chain_of_thought`, `answer`.
"""

import re
from typing import ClassVar

from lmsmith.evaluate.tasks.task import GenerateTask, Grade, Item, Row

MARKED = re.compile(r"#### (-?[0-9.,]+)")
NUMBER = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


class Gsm8k(GenerateTask):
    name = corpus = "gsm8k"
    what = "word problems, solved in writing"
    files = ("gsm8k.jsonl", "gsm8k/**/test*.jsonl", "gsm8k/**/test*.parquet", "test.jsonl")
    stop: ClassVar[tuple[str, ...]] = ("Question:", "</s>", "<|im_end|>")

    def item(self, row: Row) -> Item:
        if "context" in row:
            question, answer = row["context"], row["answer"]
            solution = f"{row['chain_of_thought']}\n#### {answer}"
        else:
            question, solution = row["question"], row["answer"]
            found = MARKED.search(solution)
            if found is None:
                raise ValueError('the answer has no number behind "####"')
            answer = found[1]
        context = f"Question: {question}\nAnswer:"
        return Item((context,), (f" {solution}",), answer=number(answer))

    def grade_text(self, item: Item, text: str) -> Grade:
        marked, all_numbers = MARKED.search(text), NUMBER.findall(text)
        return {
            "exact_match": float(marked is not None and number(marked[1]) == item.answer),
            "exact_match_last": float(bool(all_numbers) and number(all_numbers[-1]) == item.answer),
        }


def number(text: str) -> str:
    """A number without dollar signs, thousands separators and a full stop at its end."""
    return text.strip().replace("$", "").replace(",", "").removesuffix(".")


GSM8K = Gsm8k()
