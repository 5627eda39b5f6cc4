"""LAMBADA, OpenAI's version: the last word of a passage (Paperno et al. 2016).

Forms: .jsonl or Parquet with `text`, or with `context` and `continuation`.
"""

from lmsmith.evaluate.tasks.task import Item, LastWordTask, Row


class Lambada(LastWordTask):
    name = corpus = "lambada"
    what = "the last word of a passage, by greedy decoding"
    files = (
        "lambada_openai.jsonl",
        "lambada.jsonl",
        "lambada*/**/*test*.jsonl",
        "lambada*/**/*test*.parquet",
    )

    def item(self, row: Row) -> Item:
        if "context" in row:
            return Item((row["context"],), (f" {row['continuation'].strip()}",))
        context, space, word = row["text"].rpartition(" ")
        if not space:
            raise ValueError("the text is a single word")
        return Item((context,), (f" {word}",))


LAMBADA = Lambada()
