"""Stories of two to four sentences, with questions about what the events did to people and things.

    told = little_story(Random(1))
    told.text        # "One day, Ben put the hat in the box. Then Mia took the hat to the park."
    told.asked       # (Asked("where", "Where is the hat now?", "in the park"...
    told.following   # sentences that can come next, the most natural one first

The long stories of `stories.py` have a few questions per hundred tokens. A small model learns to
answer from many questions about short passages, in minutes. Everything follows from a small world:
who holds which thing, and where a thing is. An event changes the world, tells a sentence, and
leaves questions. A story has two children and two things, so a reader who only finds a name or a
thing in it is right half of the time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

NAMES = ("Lily", "Tom", "Mia", "Ben", "Anna", "Max", "Rosie", "Sam", "Ella", "Leo", "Zoe", "Finn",
         "Ruby", "Jack", "Nora", "Theo")  # fmt: skip
THINGS = ("ball", "doll", "book", "hat", "drum", "kite", "cup", "ring", "bell", "scarf", "train",
          "puppet", "blanket", "whistle", "bucket", "lamp")  # fmt: skip
PLAIN = {"put": "put away", "found": "find", "bought": "buy"}
"""The first events, and the verbs in questions with "did"."""
SPOTS = ("box", "bag", "cart", "basket", "bowl", "drawer", "pot", "jar")
PLACES = ("park", "house", "barn", "meadow", "garden", "kitchen", "market", "forest")


@dataclass(frozen=True)
class Asked:
    """A question about a little story. `sentence`: the answer as a sentence, with "_" for the words
    asked for ("Ben found _"); `answer`: these words; `others`: what else could be there; `thing`:
    the thing that it is about.
    """

    kind: str
    question: str
    sentence: str
    answer: str
    others: tuple[str, ...]
    thing: str


@dataclass(frozen=True)
class LittleStory:
    """A story, its sentences, and all questions that it answers."""

    sentences: tuple[str, ...]
    people: tuple[str, str]
    things: tuple[str, str]
    asked: tuple[Asked, ...]
    following: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass
class _World:
    """What is true after the events so far."""

    people: tuple[str, str]
    things: tuple[str, str]
    at: dict[str, str] = field(default_factory=dict)  # thing -> "box"
    holder: dict[str, str] = field(default_factory=dict)  # thing -> person
    asked: list[Asked] = field(default_factory=list)

    def ask(self, kind: str, question: str, sentence: str, answer: str, thing: str) -> None:
        groups = {
            "who": self.people,
            "what": tuple(f"the {thing}" for thing in self.things),
            "where": tuple(f"in the {place}" for place in (*SPOTS, *PLACES)),
        }
        others = tuple(one for one in groups[kind] if one != answer)
        self.asked.append(Asked(kind, question, sentence, answer, others, thing))


def little_story(random: Random) -> LittleStory:
    """Draws a story of two or three events."""
    first, second = random.sample(NAMES, 2)
    one, other = random.sample(THINGS, 2)
    world = _World((first, second), (one, other))
    day = random.choice(("day", "morning", "evening"))
    sentences = [
        f"One {day}, {_first(world, first, one, random)}",
        f"Then {_first(world, second, other, random)}",
    ]
    told = [one, other]  # the things, in the order in which they were last mentioned
    if random.random() < 0.5:
        later = random.choice(_later(world))
        _happens(world, later)
        sentences.append(f"Then {later.sentence}")
        told.sort(key=later.thing.__eq__)
    for thing, place in world.at.items():
        there = f"in the {place}"
        world.ask("where", f"Where is the {thing} now?", f"The {thing} is _", there, thing)
        if place in SPOTS:  # in a place like the park there may be other things
            world.ask("what", f"What is {there} now?", f"_ is {there}", f"the {thing}", thing)
    for thing, person in world.holder.items():
        world.ask("who", f"Who has the {thing} now?", f"_ has the {thing}", person, thing)
    holders = [(thing, world.holder.get(thing)) for thing in reversed(told)]
    following = tuple(
        f"Then {person} took the {thing} home."
        for thing, holder in holders
        for person in ((holder,) if holder else reversed(world.people))
    )
    return LittleStory(tuple(sentences), world.people, world.things, tuple(world.asked), following)


def _first(world: _World, person: str, thing: str, random: Random) -> str:
    """The first event of a thing: somebody puts it into something, or finds or buys it."""
    verb = random.choice(tuple(PLAIN))
    away = " away" if verb == "put" else ""
    event = f"{verb} the {thing}{away}"
    world.ask("who", f"Who {event}?", f"_ {event}", person, thing)
    did = f"What did {person} {PLAIN[verb]}?"
    world.ask("what", did, f"{person} {verb} _{away}", f"the {thing}", thing)
    taken = set(world.at.values())
    if verb == "put":
        world.at[thing] = random.choice([spot for spot in SPOTS if spot not in taken])
        return f"{person} put the {thing} in the {world.at[thing]}."
    world.holder[thing] = person
    place = random.choice(PLACES)
    asked = f"Where did {person} {PLAIN[verb]} the {thing}?"
    world.ask("where", asked, f"{person} {event} _", f"in the {place}", thing)
    return f"{person} {verb} the {thing} in the {place}."


@dataclass(frozen=True)
class _Later:
    """An event that can follow: `person` takes `thing` to `place`, or gives it to `taker`."""

    person: str
    thing: str
    place: str = ""
    taker: str = ""

    @property
    def sentence(self) -> str:
        if self.taker:
            return f"{self.person} gave the {self.thing} to {self.taker}."
        return f"{self.person} took the {self.thing} to the {self.place}."


def _later(world: _World) -> list[_Later]:
    """All events that can follow. A thing that somebody holds is only theirs to take or give."""
    found = []
    for thing in world.things:
        holder = world.holder.get(thing)
        for person in world.people if holder is None else (holder,):
            found += [
                _Later(person, thing, place=place)
                for place in PLACES
                if place != world.at.get(thing)
            ]
            if holder is not None:
                found.append(_Later(person, thing, taker=_other(world.people, person)))
    return found


def _happens(world: _World, event: _Later) -> None:
    """Changes the world, and asks about the event."""
    person, the_thing = event.person, f"the {event.thing}"
    if event.taker:
        world.holder[event.thing] = event.taker
        asked, did, away = f"What did {person} give away?", "gave", " away"
    else:
        world.holder.pop(event.thing, None)
        world.at[event.thing] = event.place
        asked, did, away = f"What did {person} take?", "took", ""
    world.ask("what", asked, f"{person} {did} _{away}", the_thing, event.thing)
    what = f"{did} {the_thing}{away}"
    world.ask("who", f"Who {what}?", f"_ {what}", person, event.thing)


def _other(pair: tuple[str, str], one: str) -> str:
    return pair[1 - pair.index(one)]
