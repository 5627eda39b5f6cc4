"""Tasks for chat models: the model answers under its chat template, and the answer must be right.

story_questions   who, what, where, the next sentence, told sums: about held-out stories, by kind
little_stories    the same kinds of questions about stories of two or three sentences
arithmetic        the sum of two numbers of two digits; no training set has these pairs
gsm8k_chat        GSM8K's word problems (Cobbe et al. 2021), asked by the user

`exact_match` is the share of right answers. The first three need no files. Their questions are
those of `lmsmith.text.story_questions` and `little_questions`, always the same ones. A model
without a chat template continues the question as plain text; what it writes up to the end of the
line is its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from lmsmith.evaluate.tasks.gsm8k import Gsm8k
from lmsmith.evaluate.tasks.task import ChatTask, Grade, Item, Row
from lmsmith.text.little_questions import KINDS as LITTLE_KINDS
from lmsmith.text.little_questions import little_question
from lmsmith.text.story_questions import STORY_KINDS, Question, correct, question

SEED = 7_040_502  # the demo's conversations have other seeds
PER_KIND = 100


class _Questions(ChatTask):
    """Held-out questions of some kinds, in turn."""

    kinds: ClassVar[tuple[str, ...]] = ()
    n_items: ClassVar[int]
    draw = staticmethod(question)
    max_tokens = 48
    stop = ("\n",)

    @lru_cache(maxsize=1)  # noqa: B019 - tasks live as long as the process
    def rows(self, folder: Path | None) -> Sequence[Row]:
        k = len(self.kinds)
        asked = (
            self.draw(self.kinds[n % k], SEED, n // k, held_out=True) for n in range(self.n_items)
        )
        return [{"question": one} for one in asked]

    def item(self, row: Row) -> Item:
        asked: Question = row["question"]
        text = asked.messages[-1]["content"]
        return Item(
            (f"{text}\n",),
            (asked.answer,),
            group=asked.kind if len(self.kinds) > 1 else "",
            answer=asked.answer,
            messages=asked.messages,
            chance=asked.chance,
            asked=asked,
        )

    def grade_text(self, item: Item, text: str) -> Grade:
        return {"exact_match": float(correct(item.asked, text))}


class StoryQuestions(_Questions):
    name = "story_questions"
    what = "a chat model answers questions about new stories, by kind; offline"
    kinds = (*STORY_KINDS, "sum")
    n_items = PER_KIND * 5


class LittleStories(_Questions):
    name = "little_stories"
    what = "a chat model answers questions about new stories of two or three sentences; offline"
    kinds = LITTLE_KINDS
    n_items = PER_KIND * 5
    draw = staticmethod(little_question)
    max_tokens = 24


class Arithmetic(_Questions):
    name = "arithmetic"
    what = "a chat model adds two numbers of two digits; offline"
    kinds = ("arithmetic",)
    n_items = 200
    max_tokens = 12


class Gsm8kChat(ChatTask, Gsm8k):
    name = "gsm8k_chat"
    what = "word problems, answered by a chat model"
    stop = ("\n\n",)

    def item(self, row: Row) -> Item:
        found = super().item(row)
        text = found.contexts[0].removeprefix("Question: ").removesuffix("\nAnswer:")
        message = {"role": "user", "content": text}
        return Item(
            (f"{text}\n",), (found.endings[0].strip(),), answer=found.answer, messages=(message,)
        )


STORY_QUESTIONS, LITTLE_STORIES = StoryQuestions(), LittleStories()
ARITHMETIC, GSM8K_CHAT = Arithmetic(), Gsm8kChat()
