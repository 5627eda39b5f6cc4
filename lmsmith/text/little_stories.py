"""Stories of two to four sentences, with questions about what the events did to people and things.

    told = little_story(Random(1))
    told.text        # "Ben put the hat in the box. Mia took the hat to the park."
    told.asked       # (Asked("where", "Where is the hat now?", "in the park"), ...)

The long stories of `stories.py` have a few questions per hundred tokens. A small model learns to
answer from many questions about short passages, in minutes. Everything follows from a small world:
who holds which thing, and where people and things are. An event changes the world, tells a
sentence, and leaves questions. Each story has two children and two things, and each question has a
wrong answer that the passage also names, where it names one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

NAMES = ("Lily", "Tom", "Mia", "Ben", "Anna", "Max", "Rosie", "Sam", "Ella", "Leo", "Zoe", "Finn",
         "Ruby", "Jack", "Nora", "Theo")  # fmt: skip
THINGS = ("ball", "doll", "book", "hat", "drum", "kite", "cup", "ring", "bell", "scarf", "robot",
          "puppet", "blanket", "whistle", "bucket", "lamp")  # fmt: skip
SPOTS = ("box", "bag", "cart", "basket", "barrel", "drawer", "chest", "jar")
PLACES = ("park", "beach", "barn", "school", "garden", "kitchen", "market", "forest")


@dataclass(frozen=True)
class Asked:
    """A question about a little story. `others`: what else an answer of this form could be."""

    kind: str
    question: str
    answer: str
    others: tuple[str, ...]


@dataclass(frozen=True)
class LittleStory:
    """A story, its sentences, and all questions that it answers."""

    sentences: tuple[str, ...]
    people: tuple[str, str]
    things: tuple[str, str]
    asked: tuple[Asked, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass
class _World:
    """What is true after the events so far."""

    people: tuple[str, str]
    things: tuple[str, str]
    at: dict[str, str] = field(default_factory=dict)  # person or thing -> "in the box"
    holder: dict[str, str] = field(default_factory=dict)  # thing -> person
    asked: list[Asked] = field(default_factory=list)

    def ask(self, kind: str, question: str, answer: str) -> None:
        groups = {
            "who": self.people,
            "what": tuple(f"the {thing}" for thing in self.things),
            "where": tuple(f"in the {place}" for place in (*SPOTS, *PLACES)),
        }
        others = tuple(one for one in groups[kind] if one != answer)
        self.asked.append(Asked(kind, question, answer, others))


def little_story(random: Random) -> LittleStory:
    """Draws a story of two to four events; no thing has two events of the same name."""
    first, second = random.sample(NAMES, 2)
    one, other = random.sample(THINGS, 2)
    world = _World((first, second), (one, other))
    sentences = [_event(world, first, one, random), _event(world, second, other, random)]
    for _ in range(random.randint(0, 1)):
        person, thing = random.choice(world.people), random.choice(world.things)
        sentences.append(_later(world, person, thing, random))
    for thing, place in ((t, world.at[t]) for t in world.things if t in world.at):
        world.ask("where", f"Where is the {thing} now?", place)
    for thing, person in world.holder.items():
        world.ask("who", f"Who has the {thing} now?", person)
    return LittleStory(tuple(sentences), world.people, world.things, tuple(world.asked))


def _event(world: _World, person: str, thing: str, random: Random) -> str:
    """The first event of a thing: somebody puts it somewhere, or finds it, or buys it."""
    kind = random.choice(("put", "found", "bought"))
    taken = set(world.at.values())
    place = random.choice([p for p in SPOTS if f"in the {p}" not in taken])
    world.ask("who", f"Who {kind} the {thing}?", person)
    plain = {"put": "put away", "found": "find", "bought": "buy"}[kind]
    world.ask("what", f"What did {person} {plain}?", f"the {thing}")
    if kind == "put":
        world.at[thing] = f"in the {place}"
        return f"{person} put the {thing} in the {place}."
    world.holder[thing] = person
    where = random.choice([p for p in PLACES if f"in the {p}" not in taken])
    world.ask("where", f"Where did {person} {plain} the {thing}?", f"in the {where}")
    return f"{person} {kind} the {thing} in the {where}."


def _later(world: _World, person: str, thing: str, random: Random) -> str:
    """A later event: somebody takes a thing to a place, or the one who holds it gives it away."""
    if thing in world.holder and random.random() < 0.5:
        giver = world.holder[thing]
        taker = world.people[1 - world.people.index(giver)]
        world.holder[thing] = taker
        world.ask("who", f"Who gave the {thing} away?", giver)
        return f"{giver} gave the {thing} to {taker}."
    world.holder.pop(thing, None)
    taken = set(world.at.values())
    place = random.choice([p for p in PLACES if f"in the {p}" not in taken])
    world.at[thing] = f"in the {place}"
    world.ask("who", f"Who took the {thing}?", person)
    return f"{person} took the {thing} to the {place}."
