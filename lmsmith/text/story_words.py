"""The people, places and things of the stories, in tables.

Each is a record of forms (see `lmsmith.text.grammar`). A person's pronoun forms have masculine
names: `{hero.his}` is "her" for Lily. A `kind` of hero has tables as forms: the names, friends,
elders and places of its world, so that a mole's friend is Gus the goat and not a human aunt. Every
table lists the most common records first.
"""

from itertools import chain, zip_longest

from lmsmith.text.grammar import Record, Table, blocks


def story_tables() -> dict[str, Table]:
    """Returns all tables that the rules draw from, by name."""
    girls, boys = _people(SHE, GIRLS), _people(HE, BOYS)
    child = {
        "friends": _mixed(girls, boys),
        "elders": _mixed(_elders(SHE, CHILD_ELDER_SHES), _elders(HE, CHILD_ELDER_HES)),
        "places": _places(CHILD_PLACES),
    }
    animal = {
        "names": _mixed(_people(HE, ANIMAL_HES), _people(SHE, ANIMAL_SHES)),
        "friends": _mixed(_people(HE, FRIEND_HES), _people(SHE, FRIEND_SHES)),
        "elders": _mixed(_elders(SHE, ANIMAL_ELDER_SHES), _elders(HE, ANIMAL_ELDER_HES)),
        "places": _places(ANIMAL_PLACES),
    }
    kinds = {
        "children": Table(
            [
                _record("girl", hands="hands", names=Table(girls), **child),
                _record("boy", hands="hands", names=Table(boys), **child),
            ]
        ),
        "animals": Table(_record(name, hands="paws", **animal) for name in _items(ANIMALS)),
    }
    return kinds | dict(_table(head, lines) for head, lines in blocks(WORDS).items())


def _table(head: str, lines: list[str]) -> tuple[str, Table]:
    """`hobbies: past` over `sing = sang, ...`: the plain form of a record is "sing", its form
    `past` is "sang".
    """
    name, _, forms = head.partition(": ")
    rows = [item.split(" = ") for item in _items(" ".join(lines))]
    return name, Table(
        _record(row[0], **dict(zip(_items(forms), row[1:], strict=True))) for row in rows
    )


def _places(text: str) -> Table:
    """`in the park` over the spots where a thing can hide; `{place.at}` includes the
    preposition.
    """
    return Table(
        _record(
            name.partition(" ")[2],
            at=name,
            spots=Table(_record(spot) for spot in _items(" ".join(lines))),
        )
        for name, lines in blocks(text).items()
    )


def _people(pronouns: dict[str, str], text: str) -> list[Record]:
    """`Lily` or `Gus the goat`, whose plain form is Gus."""
    return [
        _record(full.split()[0], full=full, intro="friend " + full, **pronouns)
        for full in _items(text)
    ]


def _elders(pronouns: dict[str, str], text: str) -> list[Record]:
    """`Mom = mom`: the name "Mom", but "her mom"."""
    pairs = [item.partition(" = ") for item in _items(text)]
    return [_record(name, intro=intro or name, **pronouns) for name, _, intro in pairs]


def _mixed(first: list[Record], second: list[Record]) -> Table:
    """Alternates between both lists, so that both have common and rare entries."""
    return Table(
        person for person in chain.from_iterable(zip_longest(first, second)) if person is not None
    )


def _record(word: str, **forms: str | Table) -> Record:
    article = "an " if word[0] in "aeiou" or word.startswith("honest") else "a "
    return Record({"": word, "a": article + word, **forms})


def _items(text: str) -> list[str]:
    return [" ".join(item.split()) for item in text.split(",") if item.strip()]


HE = {"he": "he", "him": "him", "his": "his"}
SHE = {"he": "she", "him": "her", "his": "her"}

GIRLS = """
    Lily, Mia, Anna, Lucy, Emma, Sara, Molly, Sue, Ella, Rosie, Amy, Nora, Daisy, Zoe, Ruby, Clara, Hannah, Ivy,
    Maya, Jane, Elsie, Kate, Nina, Alice, Holly, June, Wendy, Leila, Priya, Ada, Margot, Yuki
"""

BOYS = """
    Tim, Ben, Tom, Max, Sam, Jack, Leo, Billy, Noah, Finn, Oliver, Jake, Danny, Peter, Henry, Theo, Luke, Adam,
    Charlie, Toby, Oscar, Omar, Kofi, Hugo, Eli, Ravi, George, Ian, Kenji, Pablo, Arthur, Emil
"""

ANIMALS = """
    rabbit, bear, mouse, fox, squirrel, puppy, kitten, hedgehog, otter, badger, mole, raccoon, panda, beaver,
    chipmunk, koala
"""

ANIMAL_HES = """
    Pip, Bruno, Rusty, Button, Patch, Bramble, Scout, Barney, Ziggy, Tuffy, Oakley, Biscuit, Fudge, Acorn
"""

ANIMAL_SHES = """
    Hazel, Poppy, Bella, Clover, Dot, Coco, Honey, Maple, Willow, Luna, Pepper, Olive, Tansy, Ember
"""

FRIEND_HES = """
    Olly the owl, Gus the goat, Mo the mole, Benny the beaver, Sid the snail, Harvey the hare, Percy the pig,
    Felix the fox, Monty the mouse, Bertie the bat, Cosmo the crow, Walter the worm, Angus the ant
"""

FRIEND_SHES = """
    Tilly the turtle, Freya the frog, Dilly the duck, Rita the robin, Sandy the squirrel, Lottie the lamb, Gilda
    the goose, Kiki the kitten, Betty the bee, Wanda the wren, Henrietta the hen, Iris the iguana
"""

CHILD_ELDER_HES = "Dad = dad, Grandpa = grandpa, Uncle Joe"
CHILD_ELDER_SHES = "Mom = mom, Grandma = grandma, Aunt Rose"
ANIMAL_ELDER_HES = "Papa = papa, Grandpa = grandpa, Uncle Moss"
ANIMAL_ELDER_SHES = "Mama = mama, Granny = granny, Aunt Fern"

CHILD_PLACES = """
in the park
    under a bench, behind the slide, beside the pond, in the tall grass, near the swings, under the big oak tree,
    behind the ice cream cart
in the garden
    under a rose bush, behind the shed, in the flower bed, next to the watering can, between the cabbages, under
    the apple tree, inside a flower pot
at the beach
    under a striped towel, behind a big rock, in the warm sand, next to a sand castle, beside an empty boat,
    between two beach chairs, under a pile of seaweed
at the playground
    under the slide, behind the swings, inside the tunnel, next to the sandbox, on top of the climbing frame,
    under the seesaw, beside the water tap
in the woods
    under a pile of leaves, behind a fallen log, in a hollow tree, beside a mossy stone, between two roots, next
    to a patch of mushrooms, in the ferns
on the farm
    behind the barn, in a pile of hay, under the red tractor, next to the chicken house, beside the water trough,
    inside an empty bucket, near the pig pen
by the lake
    under the wooden dock, between the reeds, inside an old rowboat, behind a picnic table, on the smooth stones,
    beside a fishing rod, next to the boat house
at the market
    under the fruit stand, behind a stack of boxes, inside an empty crate, next to the flower cart, beside the
    fish stall, near the fountain, between two sacks of flour
in the meadow
    under a daisy patch, behind the stone wall, in the clover, next to a molehill, beside the little stream, near
    the old gate, between the buttercups
at the library
    under a reading table, behind the tallest shelf, inside the book return box, next to the globe, beside a big
    green chair, between two dictionaries, near the front desk
on the hill
    under a thorn bush, behind the windmill, in the heather, next to a wooden sign, beside a flat rock, inside a
    rabbit hole, near the old stone tower
"""

ANIMAL_PLACES = """
in the forest
    under a pile of leaves, behind a fallen log, inside a hollow tree, beside a mossy stone, between two roots,
    next to a red mushroom, in the ferns
in the meadow
    under a big daisy, behind the stone wall, in the clover, next to a molehill, beside the little stream, near
    the old gate, between the buttercups
by the river
    under the wooden bridge, between the reeds, inside an old boat, behind a round rock, on the muddy bank, beside
    a lily pad, next to the beaver dam
by the pond
    under a willow branch, behind the cattails, on a lily pad, next to a toad hole, beside the stepping stones,
    between two ducks, near the water mint
in the orchard
    under a pear tree, behind the ladder, inside a fruit basket, next to the bee hive, beside the wheelbarrow,
    between two pumpkins, in the long grass
at the old mill
    under the water wheel, behind a sack of corn, inside a broken barrel, next to the mill stone, beside the back
    door, between the floor boards, near the ladder
on the hill
    under a thorn bush, behind the tallest pine, in the heather, next to a wooden sign, beside a flat rock, inside
    an empty burrow, near the spring
at the forest market
    under the acorn stand, behind a stack of baskets, inside an empty nut shell, next to the honey cart, beside
    the cheese stall, near the well, between two sacks of seeds
in the valley
    under a bramble bush, behind the waterfall, in the bluebells, next to an old boot, beside the winding path,
    between two white stones, near the cave
"""

WORDS = """
traits
    kind, brave, clever, cheerful, curious, gentle, playful, happy, friendly, careful, polite, merry, honest,
    lively, eager, helpful, thoughtful, patient, adventurous, sweet, jolly, imaginative, hopeful, energetic, good,
    loyal
hobbies: past
    sing songs = sang songs, draw pictures = drew pictures, play hide and seek = played hide and seek, dance =
    danced, tell stories = told stories, jump in puddles = jumped in puddles, play tag = played tag, blow bubbles
    = blew bubbles, roll down hills = rolled down hills, look at the clouds = looked at the clouds, skip stones =
    skipped stones, make daisy chains = made daisy chains, chase butterflies = chased butterflies, play ball =
    played ball, build castles = built castles, splash in the water = splashed in the water, run races = ran
    races, read books = read books, play pirates = played pirates, tell jokes = told jokes, paint = painted, bake
    = baked, collect shells = collected shells, hop on one leg = hopped on one leg, hum tunes = hummed tunes,
    watch the birds = watched the birds, do puzzles = did puzzles, make up games = made up games
fruits
    apple, cherry, pumpkin, carrot, berry, nut, plum, tomato, lemon, potato, mushroom, banana, peach, corn, onion,
    spinach, rhubarb
foods
    pancakes, soup, pie, muffins, bread, tarts, stew, waffles, dumplings, cookies, cake, salad, pudding, noodles,
    toast, fritters, jam
skies: still
    sunny = the sun was still shining, warm = the air was still warm, windy = the wind was still blowing, bright =
    the sky was still bright, cloudy = the sky was still gray, cool = the air was still cool, misty = the mist was
    still hanging in the trees, breezy = a breeze was still playing with the leaves, golden = the light was still
    golden, clear = the sky was still clear, hot = the air was still hot
counts
    two, three, five, four, seven, six, ten, eight, a dozen, nine, twelve, twenty, some, fifteen, a hundred
looks
    white, small, gray, brown, old, fat, sleepy, black, shy, funny, noisy, wet, young, lazy, proud, hungry,
    yellow, tiny, muddy, quiet, spotted, busy
creatures
    ducks, cats, birds, geese, hens, frogs, goats, pigs, sheep, crows, mice, rabbits, snails, bees, butterflies,
    horses, cows, squirrels, pigeons, owls, donkeys, lizards, beetles, swans, turtles, ants, toads, dogs
shades
    red, blue, yellow, green, old, shiny, orange, little, purple, pretty, striped, white, silver, brown, tiny,
    pink, golden, special, black, funny, gray, new, spotted, light blue, dark green, colorful
hues
    red, blue, yellow, green, shiny, orange, purple, pretty, striped, white, silver, pink, golden, beautiful,
    spotted, colorful, light blue, little, lovely, fine
toys
    ball, doll, teddy bear, toy car, toy boat, book, hat, drum, scarf, toy train, whistle, puppet, blanket, music
    box, toy rabbit, robot, ring, top, toy truck, bell, bracelet, spyglass, jump rope, toy duck, marble, yo-yo,
    backpack, bucket
flyers
    kite, balloon, hat, ball, scarf, paper plane, frisbee, ribbon, glove, umbrella, pinwheel, flag
treats
    cake, cookie, pie, muffin, apple, bun, sandwich, pear, peach, pancake, donut, tart, plum, waffle, honey cake,
    cupcake, banana, orange, loaf of bread, gingerbread man
tastes
    big, sweet, fresh, tasty, delicious, perfect, lovely, enormous, wonderful, special, beautiful, huge
breakables
    vase, cup, plate, bowl, mug, lamp, teapot, jar, picture frame, clock, mirror, snow globe, pitcher, egg cup,
    flower pot
wares
    kite, drum, bike, telescope, music box, guitar, rocking horse, train, paint set, lantern, scooter, toy castle,
    sled, backpack, flute, dollhouse, storybook, magnifying glass, compass, hat, toy ship, umbrella
signals: do, did, sound
    whistle = blow = blew = Tweet, bell = ring = rang = Ding dong, drum = beat = beat = Boom boom, horn = blow =
    blew = Toot, trumpet = blow = blew = Ta-ra, flute = play = played = Tootle-too, tambourine = shake = shook =
    Jingle jangle, rattle = shake = shook = Rattle rattle, harmonica = play = played = Hum-hum, gong = strike =
    struck = Bong, triangle = strike = struck = Ting ting
comforts
    blanket, teddy bear, pillow, toy rabbit, doll, scarf, toy lamb, quilt, puppet, night cap
boxes
    basket, box, hat, scarf, bucket, mitten, bowl, boot, blanket, cap, cup, towel, slipper, drawer
patients
    bird, duckling, butterfly, turtle, frog, chick, beetle, ladybug, kitten, lizard, bee, gosling, snail, baby
    owl, toad
skills: use, fail, win
    bike = ride = it tipped over = rode it all the way down the road, kite = fly = it fell on the grass = made it
    fly above the tallest tree, flute = play = it only squeaked = played a sweet little song, scooter = ride = it
    rolled into a bush = rode it around the whole pond, drum = play = it went bang at the wrong time = played as
    steady as the rain, skateboard = ride = it rolled away alone = rode it in a big circle, yo-yo = spin = the
    string was all in knots = made it go up and down ten times, sled = steer = it ran into a pile of leaves =
    steered it around every stone, guitar = play = it sounded like an angry cat = played a song that made everyone
    dance, boat = row = it went round and round = rowed it straight across the water, violin = play = it sounded
    like a rusty door = played a tune as soft as the wind, hoop = spin = it dropped at once = kept it spinning for
    a whole minute, toy plane = fly = it landed on its nose = made it loop in the air, jump rope = use = it got
    tangled at once = jumped it twenty times, horn = blow = it made a very rude noise = blew one long clear note
plants
    sunflower, rose, pumpkin, tulip, bean, daisy, tomato, carrot, poppy, strawberry, apple, pea, lemon, violet,
    melon
pots
    pot, bucket, cup, box, jar, tin can, bowl, boot, teapot, barrel, basket, mug, watering can, hat
gifts
    card, necklace, scarf, picture, bracelet, crown, pillow, basket, hat, bookmark, box, blanket, cushion, frame,
    mug, paper flower, lantern, toy horse, wind chime, purse, candle
finds
    key, ring, purse, bracelet, book, watch, button, bell, glove, necklace, hat, umbrella, letter, locket, scarf,
    marble, brooch, wallet, pocket mirror
heights
    in the old oak tree, on the roof of the barn, at the top of the pine tree, on the lamp post, in the chestnut tree,
    on the chimney, on the church roof, on the highest branch, on the flag pole, on top of the windmill
tools
    ladder, broom, fishing rod, rake, long stick, net on a pole, rope with a hook, pair of stilts, fishing net,
    mop, tall stool, umbrella with a crooked handle
sizes
    big, tall, strong, huge, fine, secret, splendid, wonderful, cozy, magic, enormous, tiny
buildings
    tower, castle, fort, bridge, tent, birdhouse, boat, hut, raft, wagon, clubhouse, windmill, slide, puppet
    theater
materials
    sticks, wood, stones, boxes, sand, blocks, mud, branches, leaves, planks, string, clay, bark, straw, tin cans
crafts
    paper, string, wool, paint, glue, beads, feathers, shells, buttons, ribbon, dried flowers, acorns, cloth,
    glitter, pine cones, wire, stickers, seeds
hideouts: from
    under the rug = from under the rug, behind the curtain = from behind the curtain, in a drawer = out of the
    drawer, under the bed = from under the bed, behind the stove = from behind the stove, in the closet = out of
    the closet, inside an old boot = out of the old boot, on the highest shelf = from the highest shelf, under a
    pillow = from under the pillow, behind the books = from behind the books, in the laundry basket = out of the
    laundry basket
noises: cause
    tap tap tap = a branch that was knocking on the window, scratch scratch = a tiny mouse that was looking for
    crumbs, whoo whoo = an owl that was singing to the moon, drip drip drop = the tap that had not been turned
    off, creak creak = the old door that was moving in the wind, rustle rustle = a hedgehog that was walking
    through dry leaves, bump bump = a moth that wanted to fly into the light, squeak squeak = a shutter that
    needed some oil, plop plop plop = rain that was falling into a bucket, snore snore = a fat cat that was asleep
    on the roof, thump thump = an apple tree that was dropping its apples
folk
    baker, farmer, teacher, gardener, shopkeeper, mail carrier, miller, librarian, doctor, tailor, painter,
    carpenter, beekeeper, shoemaker, sailor, clock maker, piano teacher
chores: past
    rake the leaves = raked the leaves, wash the dishes = washed the dishes, sweep the floor = swept the floor,
    water the flowers = watered the flowers, feed the hens = fed the hens, carry the wood = carried the wood, fold
    the laundry = folded the laundry, pick the apples = picked the apples, paint the fence = painted the fence,
    clean the windows = cleaned the windows, pull the weeds = pulled the weeds, dust the shelves = dusted the
    shelves, stack the boxes = stacked the boxes, shell the peas = shelled the peas, polish the spoons = polished
    the spoons
numbers
    ten, five, six, eight, seven, nine, twelve, twenty, eleven, fifteen
dishes
    cake, pie, loaf of bread, pizza, apple cake, pudding, berry pie, batch of cookies, tart, pot of soup, stew,
    gingerbread house, tray of muffins, cheesecake
missing
    sugar, flour, eggs, milk, butter, honey, salt, apples, nuts, cinnamon, cream, raisins, lemons, yeast, carrots
smalls
    small, tiny, little, young, white, gray, brown, thin, fluffy, speckled
falls: less
    ten = five, five = two, seven = three, twenty = eleven, twelve = six, nine = four, thirty = eight
crashes: again
    a strong wind blew = the wind came back, a big dog ran by = the dog came back, the rain came down hard = the
    rain came back, a ball came flying = the ball came flying back, the ground shook under a cart = the cart came
    back, a fat goose sat down on top = the goose came back
chased
    a butterfly, a rabbit, a red leaf, a dragonfly, a rolling apple, a white feather, a line of ants, a frog, a
    soap bubble, a paper boat
clothes
    hat, coat, scarf, cap, apron, vest, sweater, cape, jacket, raincoat, bow tie, bonnet
months
    May, June, April, July, September, March, August, October
smells
    grass, bread, flowers, rain, honey, apples, pine trees, smoke, the sea, wet leaves, roses, cinnamon, mud, hay,
    soup, mint, soap, cheese, oranges, coffee
sounds
    the birds, the wind, a bell, a dog, someone singing, bees, the river, a train, a door, a hammer, footsteps,
    children laughing, an old clock, a frog, a violin, a cart on the road, a woodpecker, dry leaves, crickets, the
    church bells
likeness
    a feather, a bird, the sun, a star, a balloon, a lamb, a butterfly, a spring morning, a little cloud, a rubber
    ball, a candle, a king, a kite, warm bread, a new penny, a lantern, a bubble, a summer day
round
    tree, table, garden, house, chair, room, fence, lamp post, well, barrel
loads
    apples, eggs, flowers, potatoes, bread, laundry, books, carrots, wood, berries, mushrooms, pumpkins, milk
    bottles, nuts, old newspapers, pears
packs
    an apple, a rope, a spoon, a red pencil, a map, a piece of cheese, an umbrella, a ball of string, a book, a
    clean sock, a bottle of water, a pocket knife, two eggs, a bag of nuts, a compass, a boiled potato, a whistle,
    a lucky stone, an old key, a jar of honey, a feather, a candle, a handkerchief, three biscuits
weekdays: next
    Monday = Tuesday, Tuesday = Wednesday, Wednesday = Thursday, Thursday = Friday, Friday = Saturday, Saturday =
    Sunday, Sunday = Monday
helpers
    a friendly crow, a small brown bird, a sparrow, a clever magpie, an old owl, a seagull, a white pigeon, a
    robin, a blue jay, a stork
marks
    a white star, a small hole, a long scratch, a yellow ribbon, a green patch, a silver bell, a funny face, a
    black spot, a golden stripe, a crooked letter, a blue button, a paper flag, a tiny crown, a painted moon, a
    red heart, a loose string
surnames
    Brown, Finch, Green, Miller, Bell, Hill, Wood, Fox, Lamb, Stone, Field, Bird, Moon, Pepper, Frost, Button,
    Reed, Thorn, Winter, Day, Marsh, Pond, Nettle, Crumb
titles
    Mr., Mrs., Miss, old Mr., old Mrs.
grown
    big, tall, huge, fine, beautiful, splendid, wonderful, enormous, perfect, bright, tiny, sweet
"""
