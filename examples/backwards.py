"""A task of reinforcement learning with a reward of its own: spell a word backwards.

    LMSMITH_EXTENSIONS=examples/backwards.py lmsmith rl RUN --task backwards

RUN is a model tuned on conversations (`lmsmith tune`). The reward is the share of letters that are
at their place, so that a half-right answer already teaches something. With
`--rl.rewards letters_in_place,exact=2` a completely right answer earns two more.
"""

from lmsmith.extend import Problem, RLTask, register_reward, register_rl_task

WORDS = ["cat", "dog", "sun", "moon", "tree", "bird", "fish", "rain", "snow", "wind", "lake"]


class Backwards(RLTask):
    """Every word of the list in turn; two of them are held out for evaluations."""

    name = "backwards"
    what = "spell a word backwards"
    rewards = ("letters_in_place",)
    max_tokens = 8

    def problem(self, seed: int, index: int, *, held_out: bool = False) -> Problem:
        words = WORDS[:2] if held_out else WORDS[2:]
        word = words[(seed + index) % len(words)]
        return Problem.of(f"Spell {word} backwards.", word[::-1])


def letters_in_place(problem: Problem, answer: str) -> float:
    said = answer.strip()
    right = sum(a == b for a, b in zip(problem.truth, said, strict=False))
    return right / max(len(problem.truth), len(said))


register_rl_task(Backwards())
register_reward("letters_in_place", letters_in_place)
