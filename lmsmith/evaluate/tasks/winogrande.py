r"""WinoGrande: whom or what does a blank mean? (Sakaguchi et al. 2020)

Partial scoring (Trinh and Le 2018): each option fills the blank, and what is scored is the same
for both: the rest of the sentence.

Forms: the original dev.jsonl with dev-labels.lst beside it or `answer` in it, the Hub's Parquet
(`sentence`, `option1`, `option2`, `answer`), or `context_options`, `continuation`, `gold`.
"""

from lmsmith.evaluate.tasks.task import ChoiceTask, Item, Row


class WinoGrande(ChoiceTask):
    name = corpus = "winogrande"
    what = "whom does a blank mean? 2 names; the rest of the sentence is scored"
    files = ("winogrande.jsonl", "winogrande*/**/dev.jsonl", "winogrande*/**/val*.parquet")
    chance = 0.5

    def item(self, row: Row) -> Item:
        if "context_options" in row:
            contexts, rest = row["context_options"], row["continuation"].strip()
            return Item(tuple(contexts), (f" {rest}",), int(row["gold"]))
        before, blank, rest = row["sentence"].partition("_")
        if not blank:
            raise ValueError("the sentence has no blank (_)")
        gold = int(row["answer"] if "answer" in row else row["label"]) - 1
        contexts = (before + row["option1"], before + row["option2"])
        return Item(contexts, (f" {rest.strip()}",), gold)


WINOGRANDE = WinoGrande()
