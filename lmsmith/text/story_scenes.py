"""The scenes that all plots share: the hero, the start of the day, tears, help, joy, and the
ending.

Notation: `lmsmith.text.grammar`. Variables mean the same everywhere: the opening binds `kind`,
`trait` and `hero`; the plot binds `place`, the `shade` and the `thing` that the story is about, and
`pal`, who helps. Optional ones (`hobby`, `food`, `sky`) use `?=`: they are written again if they
were mentioned before.
"""

SCENES = r"""
story
    <opening> // <plot>

opening
    <who>[| <home>][ <likes>|][| <eats>][| <wears>]

who
    [Once upon a time, there was|Once there was|There once was|Long ago, there was|Not so long ago, there was|Far away
        and long ago, there was] <hero>.
    In a [small|quiet|little|sunny|faraway|green|busy|sleepy|windy] [village|town|valley|house|cottage|hamlet] [by the
        sea|near the woods|on a hill|by a river|at the edge of a forest|under tall trees|not far from here|behind the
        mountains], there lived <hero>.
    [This is the story of|Let me tell you about|Everyone knew|My favorite story is about] <hero>[.|, who was [five|
        six|four|seven] years old.]

hero
    {trait.a=traits} [little |young |small |][{kind=children}|{kind=animals}] [named|called] {hero=kind.names}

home
    {hero.He} lived [with {hero.his} [family|mother and father|grandparents|brothers and sisters|two big brothers|
        little sister|aunt and uncle|seven cousins] |]in a [cozy|small|warm|tidy|round|crooked|bright|narrow|friendly|
        noisy] [house|home|cottage|cabin|hut] [with a [red|green|blue|yellow|white] [door|roof]|near the [river|woods|
        bakery|old bridge|school|sea]|under [a big oak|an old pine|a plum] tree|at the end of a long road|with a
        garden full of [flowers|bees|herbs|plums|birds]|on top of a hill|between two [hills|streams|tall rocks]].

likes
    {hero} [loved|liked|always wanted] to {hobby=hobbies}[ and to {hobby2=hobbies-hobby}|].
    [More than anything|Most of all|Rain or shine|On quiet days|When nobody was looking], {hero.he} [liked|loved] to
        {hobby=hobbies}[ from morning till night|, and {hero.he} was [very |quite |]good at it].
    [Every day|Every morning|After breakfast|On Sundays|Whenever {hero.he} could|Before bed], {hero} would
        {hobby=hobbies}[ and {hobby2=hobbies-hobby}|].

eats
    {hero.His} favorite [food|thing to eat] was <food>[ with <topping>|].
    And oh, how {hero.he} [loved|liked] <food>[ with <topping>|]!
    [For breakfast|For lunch|For dinner|At any time of day], {hero.he} could [always |]eat a [big|whole|huge] [bowl|
        plate|basket|pile] of <food>.

food
    {fruit?=fruits} {food?=foods}

topping
    [a bit of |lots of |][butter|honey|cream|sugar|cheese|salt|jam|mustard|parsley|cinnamon]

wears
    [{hero.He} [always|often] wore|People knew {hero.him} by] {hue.a=hues} {clothes=clothes}[ with [big|two|shiny|odd]
        [buttons|pockets]| that was too big| with a hole in it|].

one_day
    One {sky=skies} <day>
    One day[ [in spring|in summer|in fall|after breakfast|after a long nap|in {month=months}]|]
    One [morning|afternoon|Saturday|Sunday|Monday|Friday|Wednesday|Thursday|Tuesday]
    On a {sky=skies} <day> in {month=months}

day
    [morning|day|afternoon]

went
    [went|walked|ran|skipped|hurried|set off|marched|hopped|strolled|raced]

on_the_way
    [On the way|Along the way|As {hero.he} went], {hero.he} [saw|passed|came by|looked at|found] <sight>.
    [First|Soon] {hero.he} came to <sight>, and {hero.he} [stopped|stood still|sat down] to [look|watch|say hello|
        smile|rest a little].
    The [path|road|way] was [long|short|dusty|muddy|quiet|winding|steep], but {hero.he} [did not mind|sang all the
        way|hopped along happily|knew it well|hummed a song].
    {hero.He} [took along|carried|had with {hero.him}] {pack=packs}, {pack2=packs-pack} and {pack3=packs-pack-pack2}.
    [{hero.He} met {friend=kind.friends-hero}, who was [carrying|looking for|selling|dreaming of] {load?=loads}|
        {hero.He} waved to {friend=kind.friends-hero} and {friend2=kind.friends-hero-friend}].

aside
    <somewhere>, <animals> <did>.
    The air smelled of {smell=smells} and {smell2=smells-smell}.
    {hero} [heard|could hear] {sound=sounds}[ and {sound2=sounds-sound}|].

sight
    {count?=counts} {look?=looks} {creature?=creatures}

animals
    <counts> <looks> <creatures>

counts
    two|three|five|four|seven|six|ten|eight|a dozen|nine|twelve|twenty|some|fifteen|a hundred

looks
    white|small|gray|brown|old|fat|sleepy|black|shy|funny|noisy|wet|young|lazy|proud|hungry|yellow|tiny|muddy|quiet|
        spotted|busy

creatures
    ducks|cats|birds|geese|hens|frogs|goats|pigs|sheep|crows|mice|rabbits|snails|bees|butterflies|horses|cows|
        squirrels|pigeons|owls|donkeys|lizards|beetles|swans|turtles|ants|toads|dogs

somewhere
    [Nearby|Somewhere|Far away|High above|Behind a tree|Across the road|In the distance|Over the hill|Next door|In the
        bushes|In the shade|By a wall|On a roof|In a ditch|By the water|Under a fence]

did
    [slept in the sun|sneezed|yawned|looked for food|called out|sat very still|turned around twice|ran in a circle|
        took a bath|made funny sounds|told the news|danced|had a nap|counted clouds|ate lunch|looked for friends|
        played a game|waited for the rain|sang out of tune|stood in line]

oh_no
    [Oh no|Oh dear|Uh-oh|Oh my|Goodness|Oh, what a pity|Bother|Oh, how sad|Not that|My goodness]

hooray
    [Hooray|Yay|Wow|Hurray|Yippee|Oh my|Look at that|Oh, how lovely|I can't believe it|What luck]

cried
    [cried|said|shouted|called|gasped|yelled|exclaimed|squeaked]

tone
    [| softly| in a small voice| in a quiet voice| after a while| at last| slowly| quickly| in a low voice| and
        blinked| and swallowed| quietly| with a frown| and coughed| and looked up| with a little cough| all at
        once| in one breath| and looked down]

kindly
    [| softly| kindly| gently| with a frown| in a warm voice| at once| in a low voice| and bent down| and stopped| and
        took {pal.his} time| slowly]

gladly
    [| happily| with a smile| with a laugh| with bright eyes| proudly| in a loud voice| and winked| out of breath| at
        once| cheerfully| in a warm voice| and clapped| and hopped a little| as if it were nothing| very fast| and
        bowed| in a singing voice| and stood up straight]

soon
    [Soon|After a while|Before long|A little later|At last|By and by|In the end|After some time]

ran
    [ran|hurried|rushed|walked|raced|hopped|dashed|went]

a_while
    [a moment|a minute|a while|a long time|a little while|a second or two]

how_long
    [all morning|for hours|for a long time|all day|until noon|for an hour|hour after hour|all afternoon|from breakfast
        to lunch|until the sun was low|the whole day|for half a day]

carefully
    [gently|carefully|slowly|softly|quietly|lightly]

sad
    [sad|upset|unhappy|worried|gloomy|miserable|heartbroken|sorry]

happy
    [happy|glad|proud|delighted|pleased|cheerful|excited|thrilled|joyful|merry]

very
    [very |so |really |quite |]

gloomily
    [sadly|slowly|quietly|with a sigh|for a long time|without a word]

tears
    {hero} [felt|was] <very><sad>[ and [wanted to cry|did not know what to do|hung {hero.his} head|could not say a
        word|had a lump in {hero.his} throat|wished it was all a dream]|].
    {hero} [began|started] to [cry|sob|sniff|weep|shake][ <gloomily>|].
    [A big tear|A tear|A small tear|One tear, and then another,] [ran|rolled] down {hero.his} [cheek|face|nose|chin].
    {hero.He} sat down [on the ground|on a stone|on the grass|on a tree stump|in a corner|on a step] and [sighed|
        cried|put {hero.his} chin in {hero.his} {kind.hands}|hugged {hero.his} knees|looked at {hero.his} feet|drew in
        the dust with one finger|closed {hero.his} eyes].
    {hero}'s [lip|chin|nose|voice] [began to shake|shook|trembled][, and {hero.his} eyes [were wet|filled with tears|
        grew big]|].

dances
    danced[| in a circle| around the {dance?=round}| like {like?=likeness}]
    [jumped|hopped|bounced] [up and down|on one leg|three times|like {like?=likeness}]
    clapped {hero.his} {kind.hands}
    laughed [out loud|with joy|and laughed]
    [sang|hummed|made up] a [little|happy|silly|loud] song
    [did|turned] a [cartwheel|somersault]
    [hugged|kissed] [everyone|{pal}|the nearest tree]

joy
    {hero} was so <happy> that {hero.he} <dances>.
    "<hooray>!" <cried> {hero}[ and <dances>|].
    A [big|wide|warm|happy|bright] smile [came to|spread over|lit up|grew on] {hero}'s face[, and {hero.he} <dances>|
        ].
    {hero} [laughed|smiled|beamed] [from ear to ear|and felt warm inside|like {like?=likeness}].
    {hero} felt [just |almost |]like {like?=likeness}.

pal
    {pal.intro=kind.friends-hero}
    {pal.intro=kind.elders}

pal_comes
    [Just then|Soon|After a while|A moment later|Before long|As luck would have it], {hero.his} <pal> [came by|walked
        by|came along|passed by|came around the corner|came to look for {hero.him}][| with a [basket|cart|bag|bucket]
        of {load?=loads}].
    {hero} [ran|hurried|went|walked|rushed] to [find|look for|fetch|ask|get] {hero.his} <pal>[, who was [busy|resting|
        working|singing] [in the garden|in the kitchen|under a tree|on the porch|by the fence]|].
    {hero.His} <pal> [heard|saw|noticed] {hero} and [came over|came to help|sat down beside {hero.him}|ran up to
        {hero.him}|stopped].

ask
    "[What's wrong|What's the matter|Why do you look so <sad>|What happened|Are you all right|Why the long face|Why
        are you <sad>|What is it], {hero}?" asked {pal}<kindly>.
    {pal} [looked at|smiled at|sat next to|hugged] {hero}. "[Tell me|Can you tell me|Please tell me] what [happened|is
        wrong|makes you so <sad>]," {pal.he} said<kindly>.

comfort
    "[Don't worry|Don't be <sad>|Cheer up|Never mind|It's all right|Dry your tears|Chin up]," said {pal}<kindly>.
        "<help>."
    {pal} [gave {hero} a [big |warm |]hug|thought for a [moment|minute|little while]|nodded|smiled|scratched {pal.his}
        head|took a deep breath]. "<help>," {pal.he} said<gladly>.

help
    [I will help you|Let me help you|We can do it together|I have an idea|Two of us can do more than one|I know what
        to do|I have a plan|There is always a way|We will think of something|Leave it to us|Every problem has an
        answer]

thanks
    "[Thank you|Thanks|Thank you so much], {pal}!" said {hero}<gladly>. "You are [so kind|the best|very clever|a good
        helper|so good to me|my hero|cleverer than an owl|a true friend]."
    {hero} [gave|ran to give] {pal} a [big|warm|tight|long] hug[ and said thank you|].
    {hero} thanked {pal} [again and again|with all {hero.his} heart|with a [kiss|song|hug|dance]|three times].

praise
    "[What {trait.a} {kind} you are|You really are {trait.a} {kind}|You are a good {kind}, and {trait.a} one],
        {hero}," said {pal}<gladly>.
    "I am [so |very |][proud of you|glad|happy for you], {hero}," said {pal}<gladly>. "You are {trait.a} {kind}."
    {pal} [smiled|beamed|laughed|nodded]. "[Well done|Good job|I knew you could do it|I knew it], {hero}," {pal.he}
        said<gladly>.

homeward
    When [they|{hero}] [got home|came home|walked home], {sky.still?=skies}.
    [All the way home|On the way back], they [talked|sang|laughed] [about|of] <sight>.

treat_after
    [Then|After that|To celebrate|That evening|For supper], {hero} and {pal} [ate|had|shared|made] <food>[ with
        <topping>|][ together| under a tree| at the [big|kitchen|little] table| until they were full| by candle
        light].

play_after
    [Then|After that|For the rest of the day|All afternoon|And then], {hero} and {pal} {hobby.past?=hobbies}[
        together|][ <until>|].

until
    until [the sun went down|it was dark|the stars came out|supper was ready|they were tired|the moon came up|the
        bells rang]

bedtime
    That night, {hero} [put|laid|set|kept] the {shade} {thing} [next to|under|near|at the foot of|on the shelf above]
        {hero.his} bed and [fell asleep|went to sleep|slept well|listened to {sound3=sounds-sound-sound2}|dreamed [of|
        about] <sight>].
    [Before|When] {hero} went to [bed|sleep] that night, {hero.he} [looked at|said good night to|whispered to|smiled
        at] the {shade} {thing} [once more|one last time|again].
    That night, {hero} [took off {hero.his} {hue?=hues} {clothes?=clothes} and |]dreamed [of|about] the {shade}
        {thing}[ and [<sight>|a big plate of <food>]|].
    <visitors>
    <visitors> <ever_after>

visitors
    [The next day|Soon|That week|On {visit=weekdays}], {guest=kind.friends-hero-pal},
        {guest2=kind.friends-hero-pal-guest} and {guest3=kind.friends-hero-pal-guest-guest2} [came|stopped by] to
        [see|look at|play with|hear about] the {shade} {thing}.

ever_after
    [And they|They all|They] lived happily ever after.
    [And that was|It was] the [best|nicest|happiest] day [of all|of the year|in a long time|{hero} ever had].
    And {hero} was [a happy|the happiest|a very happy] {kind}[ indeed| in the world|].
    The [moon|sun|evening star] [smiled|shone|looked down] on [the roofs|the house|the trees], and all was well.
"""
