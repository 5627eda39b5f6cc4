"""What can be asked about each plot, with the answers: the ground truth of the grammar.

A line is `KIND PARAGRAPH: question = answer`. Slots are those of `lmsmith.text.grammar`. The part
of an answer between asterisks is also correct alone. PARAGRAPH counts from 0, the opening. A
passage must include this paragraph to be asked about. `2!`: it must also end there, because the
rest of the story may change the answer ("now").
"""

ASKED = r"""
lost
    who 1: Who lost {shade.a} {thing}? = It was *{hero}*.
    who 3: Who came to help {hero}? = It was *{pal}*.
    what 1: What did {hero} lose? = {hero} lost *{shade.a} {thing}*.
    what 1: What did the {thing} have on it? = It had *{mark}*.
    where 1: Where did {hero} take the {shade} {thing}? = {hero.He} took it to *{place}*.
    where 4: Where did they find the {shade} {thing}? = They found it *{spot}*.
    where 4!: Where is the {shade} {thing} now? = It is *{spot}*.
share
    who 2: Who was hungry? = It was *{pal}*.
    who 3: Who did not want to share? = It was *{hero}*.
    who 4: Who was sorry? = It was *{hero}*.
    what 1: What did {hero} want to eat? = {hero} had *{shade.a} {thing}*.
    where 1: Where did {hero} go? = {hero} went to *{place}*.
stuck
    who 3: Who came to help {hero}? = It was *{pal}*.
    what 1: What got stuck? = It was *{shade.a} {thing}*.
    what 4: What did {pal} bring? = {pal} came back with *{tool.a}*.
    where 1: Where was {hero}? = {hero} was *{place.at}*.
    where 1!: Where is the {shade} {thing} now? = It is *{high}*.
    where 2!: Where is the {shade} {thing} now? = It is *{high}*.
    where 3!: Where is the {shade} {thing} now? = It is *{high}*.
broken
    who 1: Who had {shade.a} {thing}? = It was *{pal}*.
    who 2: Who broke the {shade} {thing}? = It was *{hero}*.
    who 4: Who told the truth? = It was *{hero}*.
    what 2: What did {hero} break? = {hero} broke *{shade.a} {thing}*.
    where 3: Where did {hero} hide the pieces? = They were *{hide}*.
    where 3!: Where are the pieces now? = They are *{hide}*.
    where 4!: Where are the pieces now? = They are *{hide}*.
rescue
    who 1: Who found {size.a} {patient}? = It was *{hero}*.
    who 3: Who knew what the {patient} needed? = It was *{pal}*.
    what 1: What did {hero} find? = {hero} found *{size.a} {patient}*.
    what 2: What did {hero} put the {patient} in? = It was *{shade.a} {thing}*.
    where 1: Where did {hero} go? = {hero} went to *{place}*.
    where 1!: Where is the {patient} now? = It is *{spot}*.
    where 2!: Where is the {patient} now? = It is *in the {shade} {thing}*.
wish
    who 2: Who knew a way to earn it? = It was *{pal}*.
    what 1: What did {hero} see? = {hero} saw *{shade.a} {thing}*.
    what 1: How much was the {thing}? = It was *{price} coins*.
    what 2: What did {hero} do on {weekday}? = {hero} *{chore.past}*.
    what 2: What did {hero} do on {weekday.next}? = {hero} *{chore2.past}*.
build
    who 1: Who helped {hero} build the {thing}? = It was *{pal}*.
    who 2: Who wanted to give up? = It was *{hero}*.
    who 3: Who wanted to try again? = It was *{pal}*.
    what 1: What did they build? = They built *{shade.a} {thing}*.
    where 1: Where did they build the {shade} {thing}? = They built it *{place.at}*.
learn
    who 2: Who said that it was hard at first? = It was *{pal}*.
    what 1: What did {hero} get? = {hero} got *{shade.a} {thing}*.
    what 3: How many mistakes did {hero} make on {weekday}? = It was *{times}*.
    what 3: How many mistakes did {hero} make on {weekday.next}? = It was *{times.less}*.
found
    who 3: Who had lost the {shade} {thing}? = It was *{pal}*.
    what 1: What did {hero} find? = {hero} found *{shade.a} {thing}*.
    where 1: Where was {hero}? = {hero} was *{place.at}*.
    where 1: Where did {hero} find the {shade} {thing}? = It was *{spot}*.
gift
    who 1: Who had a birthday? = It was *{pal}*.
    who 1: Who wanted to make {shade.a} {thing}? = It was *{hero}*.
    what 1: What did {hero} want to make? = {hero} wanted to make *{shade.a} {thing}*.
    where 2: Where did {hero} hide the {shade} {thing}? = It was *{hide}*.
    where 2!: Where is the {shade} {thing} now? = It is *{hide}*.
grow
    who 1: Who gave {hero} {plant.a} seed? = It was *{pal}*.
    who 1: Who got {plant.a} seed? = It was *{hero}*.
    what 1: What seed did {hero} get? = {hero} got *{plant.a} seed*.
    what 2: How many days went by? = It was *{days} days*.
    where 1: Where did {hero} put the seed? = It was *in the {shade} {thing}*.
    where 1!: Where is the seed now? = It is *in the {shade} {thing}*.
night
    who 3: Who heard a noise? = It was *{hero}*.
    who 3: Who came to help {hero}? = It was *{pal}*.
    what 1: What did {hero} have in bed? = {hero} had *{shade.a} {thing}*.
    what 4: What made the noise? = It was *{noise.cause}*.
newcomer
    who 1: Who was all alone? = It was *{pal}*.
    who 2: Who said the first word? = It was *{hero}*.
    what 1: What did {hero} take along? = {hero} had *{shade.a} {thing}*.
    where 1: Where did {hero} go? = {hero} went to *{place}*.
    where 1: Where was {pal}? = {pal} was *{spot}*.
signal
    who 1: Who got {shade.a} {thing}? = It was *{hero}*.
    who 1: Who gave {hero} the {shade} {thing}? = It was *{pal}*.
    who 4: Who came to help {hero}? = It was *{pal}*.
    what 1: What did {hero} get? = {hero} got *{shade.a} {thing}*.
    what 2: What did {hero} follow? = {hero} followed *{chased}*.
    where 2: Where did {hero} go? = {hero} went to *{place}*.
    where 4: Where did {pal} find {hero}? = {hero} was *{spot}*.
swap
    who 1: Who had the {shade} {thing} at first? = It was *{hero}*.
    who 1: Who had the {shade2} {thing2} at first? = It was *{pal}*.
    who 1!: Who has the {shade} {thing} now? = It is *{pal}*.
    who 1!: Who has the {shade2} {thing2} now? = It is *{hero}*.
    who 2!: Who has the {shade2} {thing2} now? = It is *{hero}*.
    who 3!: Who has the {shade} {thing} now? = It is *{hero}*.
    what 1: What did {hero} get? = {hero} got *the {shade2} {thing2}*.
    what 1: What did {hero} give away? = {hero} gave away *the {shade} {thing}*.
    where 1: Where were they? = They were *{place.at}*.
bake
    who 1: Who helped {hero} to bake? = It was *{pal}*.
    what 1: What did they want to make? = They wanted to make *{shade.a} {thing}*.
    what 1: What was missing? = They had no *{item}*.
"""
