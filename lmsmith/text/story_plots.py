"""The plots: each is about one thing, which is named again at the end.

Notation: `lmsmith.text.grammar`. Scenes in `<...>` that are not defined here are in
`lmsmith.text.story_scenes`.
"""

PLOTS = r"""
plot
    <lost>
    <share>
    <stuck>
    <broken>
    <rescue>
    <wish>
    <build>
    <learn>
    <found>
    <gift>
    <grow>
    <night>
    <newcomer>
    <signal>
    <swap>
    <bake>

lost
    <fond> <one_day>, {hero} [took|carried|brought] it to {place=kind.places}.[ <on_the_way>|] <lose>[ <aside>|] //
        "<oh_no>!" <cried> {hero}. "Where is my {shade} {thing}?" [<search> |]<tears> // <pal_comes> [<ask> |]"[I
        lost|I can't find|I have lost|Someone took|I left] my {shade} {thing}," [said|sobbed|sniffed|whispered|sighed]
        {hero}<tone>. <comfort> // <find> <joy>[ <thanks>|] // <lost_end>
fond
    {hero} had {shade.a=shades} {thing=toys} with {mark=marks}[ and took it everywhere| and would not sleep without
        it| and talked to it at night|, and {hero.he} loved it [dearly|very much|more than anything]|].
    {hero.His} [best|favorite|dearest|oldest] [toy|thing|treasure] was {shade.a=shades} {thing=toys} with
        {mark=marks}[, a gift from {hero.his} [cousin|neighbor|teacher|friends]|].
    [For|On] {hero.his} [last |]birthday, {hero} got {shade.a=shades} {thing=toys} with {mark=marks}.
    [One winter|Last spring|Long ago], {hero} had found {shade.a=shades} {thing=toys} with {mark=marks}, and {hero.he}
        [kept|loved|saved] it ever since.
lose
    {hero} [played|ran around|had fun|climbed and jumped|sang and danced|dug holes] [<how_long>|until {hero.he} was
        [hungry|tired|thirsty|dizzy|cold]|until {hero.his} legs hurt]. But when it was time to [go home|eat|leave],
        the {shade} {thing} was <gone>.
    There {hero.he} put it down to [climb a tree|smell the flowers|drink some water|feed the birds|pick some berries|
        wave to a friend|catch a grasshopper|throw a stone|scratch {hero.his} back|take off {hero.his} scarf|count the
        clouds|look for a four-leaf clover]. When {hero.he} [came|looked|turned] back, the {shade} {thing} was <gone>.
    Then {hero.he} [stopped|turned around|bent down|climbed up] to look at <animals>. [A minute later|When {hero.he}
        looked up|Soon after], the {shade} {thing} was <gone>.
gone
    [gone|not there|nowhere to be seen|lost|missing]
search
    {hero.He} looked {miss=place.spots}[ and {miss2=place.spots-miss}|], but it was not there.
    Was it {miss=place.spots}? No.[ Was it {miss2=place.spots-miss}? No.|]
    {hero.He} [searched|looked] {miss=place.spots}[, and then {miss2=place.spots-miss}|], but [found|saw] only
        {load?=loads}.
find
    They looked [high and low|here and there|everywhere|far and wide|in every corner|up and down|under every leaf][
        and asked [{asked=kind.friends-hero-pal}|{helper=helpers}|<animals>]|]. <soon>, {spot=place.spots-miss-miss2},
        {pal} saw something {shade} with {mark}. [It was the {shade} {thing}!|"Here [it is|is your {thing}|it lies]!"
        <cried> {pal}<gladly>.|Could it be the {thing}? Yes, it was!]
    "[When did you last have it|Where did you play|Where did you go first|What did you do then]?" asked {pal}. {hero}
        thought [hard|and thought|for <a_while>]. Then they <ran> back and looked {spot=place.spots-miss-miss2}. There
        [was|lay] the {shade} {thing}[, safe and sound|, a bit [dusty|wet|muddy|cold|sandy]|, between <animals>|]!
    "[Look over there|Come and look|Over here|I see it|Is this it]!" called {pal}. The {shade} {thing} [was|lay]
        {spot=place.spots-miss-miss2}[, just waiting to be found|, all by itself|, as if it were asleep|, guarded by
        <animals>|, half covered by leaves|].
lost_end
    [<homeward> |]<bedtime>
    From that day on, {hero} [always kept the {shade} {thing} close|took good care of the {shade} {thing}|never left
        the {shade} {thing} behind[ again|]|tied a [string|ribbon|bell] to the {shade} {thing}].
    <play_after> [But {hero} held on to the {shade} {thing} all the time.|<ever_after>]

share
    <one_day>, {hero} [got|had|bought|was given|found] {shade.a=tastes} {thing=treats}[ with <topping>|]. It [looked|
        smelled] [wonderful|so good|like a birthday|like summer|better than anything|like {like=likeness}]. [There was
        a [cherry|star|nut|candle|flower|red dot] on top. |]{hero.He} <went> to {place=kind.places} to eat it.[
        <on_the_way>|][| <aside>] // There {hero} [met|saw|found|ran into] {hero.his} {pal.intro=kind.friends-hero}.
        {pal} was <very>hungry[, because {pal.he} had [forgotten|dropped|lost|given away] {pal.his} lunch| and had
        nothing [to eat|but {load?=loads}]|]. "[What {shade.a} {thing}|That is {shade.a} {thing}|I wish I had
        {shade.a} {thing}]," said {pal}<tone>. "May I have a [piece|bite|little bit|taste][, please|]?" // <refuse>
        {pal} [said nothing|looked down|nodded sadly|turned red|sighed|swallowed] and [went|walked|tiptoed] [away|off|
        back to {chum=kind.friends-hero-pal}]. {hero} [took a bite|started to eat|ate a little bit|chewed <a_while>|
        licked it]. [But the {thing} did not taste [good|right|sweet|like anything|nice] at all|But something was
        wrong with the {thing}]. [It is no fun to eat [alone|when a friend is hungry|when you have been mean|with a
        heavy heart]|{hero} thought of {pal}[ and felt <sad>|'s [sad|big|wet|kind] eyes]]. // {hero} <ran> [after|to
        find] {pal}. "[I'm sorry|I am so sorry|Please forgive me|I was mean], {pal}," {hero.he} said<tone>. "[Let's
        share|I want to share|Come and share|Please take half of] my {thing}." {hero} [broke|cut|tore] it in two and
        gave {pal} the [bigger|better|other|best|nicest|first] [half|piece][, and then [a crumb|a little] more|]. They
        [sat|ate] [side by side|together|{spot=place.spots}][ and [laughed|talked|watched <animals>|listened to
        {sound3=sounds-sound-sound2}]|]. Now the {shade} {thing} tasted [better than ever|twice as good|like honey|
        just right|like more|as it should]. // <share_end>
refuse
    "No," said {hero}<tone>. "It is [mine|my {thing}][, all mine|, not yours|]."
    {hero} [hid|held] the {shade} {thing} behind {hero.his} back. "[There is not enough|I want it all|It is too small
        for two|Go and find your own|I can't, I am so hungry|It is only for {chum2=kind.friends-hero-pal}]," {hero.he}
        said<tone>.
    {hero} shook {hero.his} head. "[I have waited for it all day|I don't want to share|You can get your own|Not today|
        Maybe tomorrow]," {hero.he} said<tone>.
share_end
    The next day, {pal} [came|ran up] to {hero} with {shade2.a=tastes-shade} {treat=treats-thing}. "[Now it is my
        turn|This time I will share|Half of it is for you|You shared with me]," said {pal}<gladly>. <share_moral>
    <play_after> <share_moral>
    <praise> <share_moral>
share_moral
    [And {hero} never forgot|From then on, {hero} knew|That day, {hero} learned] that [sharing makes [everything|food]
        taste better|a friend is better than {shade.a} {thing}|half {thing.a} can make two friends happy|nobody should
        eat {shade.a} {thing} alone].
    From that day on, {hero} always [cut|broke] {hero.his} [cake|bread|food|lunch] in two.

stuck
    <one_day>, {hero} [played|was playing|ran around] with {shade.a=hues} {thing=flyers} {place.at=kind.places}.[
        <aside>|] [[A gust of wind|The wind|A strong wind] [came|blew] and|{hero.He} [threw it too high|let go of it|
        tossed it into the air|sneezed], and the wind] [took|carried|lifted|pulled] it [up and up|high into the air|
        away|over the fence|round and round]. It got stuck {high=heights}. "<oh_no>!" <cried> {hero}. "My {shade}
        {thing}!" // {hero} <try>.[ Then {hero.he} <try_again>.|] But the {shade} {thing} [did not come down|stayed
        {high}|would not move|only wobbled a little]. <tears> // <pal_comes> [<ask> |]"My {shade} {thing} is stuck
        {high}," [said|sniffed|explained|sighed|sobbed] {hero}<tone>. <comfort> // <get_down> <joy>[ <thanks>|] //
        <stuck_end>
try
    [jumped|jumped and jumped|stood on {hero.his} toes|stretched] until {hero.his} [legs|toes|ears|{kind.hands}] hurt
    [shouted|whistled|clapped|sang] and [waved|pulled faces|begged|waited]
try_again
    [threw|tossed] a [pine cone|small stone|stick|ball of mud|nut|shoe] at it
    climbed on [a box|a barrel|an old chair|a wobbly bucket|a fence|a pile of books] and [reached|stretched] as [high|
        far] as {hero.he} could
    [begged|asked] the wind to [bring it down|bring it back|blow the other way]
get_down
    {pal} [ran home|went away|looked around] and came back with {tool.a=tools}. [It was too short, so they stood on [a
        barrel|a table|a wall|a box]. |]With the {tool}, they could [just |]reach the {shade} {thing}[ and [pull|push|
        shake|poke] it loose|]. Down it came[, right on {pal}'s [nose|head|foot]|]!
    {hero} [climbed|stood] on {pal}'s shoulders[, wobbled a little,|] and [stretched|reached up]. [One more inch|A
        little more|Just a bit higher|Up and up]... and {hero} [had|held|caught] the {shade} {thing}!
    {pal} [called|asked|whistled to] {helper=helpers}. It flew up, pulled [once|twice|three times|hard|with its beak|
        and pulled], and down [came|fell|sailed] the {shade} {thing}!
stuck_end
    {hero} and {pal} played with the {shade} {thing} <how_long>, far away from [the trees|the wind|tall things|
        anything high|every roof].
    [<homeward> |]<bedtime>
    <treat_after> The {shade} {thing} [sat|lay] [right |]next to them, [safe and sound|on the ground for once|where
        the wind could not get it].

broken
    {hero.His} {pal.intro=kind.elders} had {shade.a=shades} {thing=breakables}. It stood on [the shelf|the table|a
        little table|the window sill|top of the piano|a pile of books]. "[Please be careful with it|Don't play near
        it|Look, but don't touch|Mind your elbows]," {pal} [always|often] said. "It is [very old|dear to me|a gift
        from a friend|older than you|the only one I have]." // <one_day>, {hero} [ran|danced|hopped|played ball|did a
        cartwheel|chased a fly|marched] [in the house|through the room|in the kitchen|around the table] and [bumped
        into|kicked|knocked against|fell against] [it|the wall|a chair|the door]. [Crash|Bang|Smash|Clatter]! The
        {shade} {thing} fell [down |]and broke into [[two|three|many|a hundred|five] pieces|more pieces than {hero}
        could count]. // "<oh_no>!" [whispered|gasped|cried] {hero}. "[Now |]{pal} will be so [sad|angry|cross|
        unhappy]." {hero.He} [put|hid|pushed] the pieces {hide=hideouts}. But {hero} felt [bad|terrible|sick|heavy|
        cold] inside. {hero.He} could not [play|eat any <food>|sleep|{hobby?=hobbies}][ or [laugh|smile|sit still|
        think of anything else]|].[ Outside, <animals> <did>.|] // [When {pal} came home, {pal.he}|In the evening,
        {pal}|Soon {pal}|After supper, {pal}] [looked around|stopped|stood still]. "Where is my {shade} {thing}?"
        asked {pal}<tone>. <confess> // {pal} was [quiet|silent] for <a_while>. Then {pal.he} [smiled|took {hero}'s
        {kind.hands}|gave {hero} a hug|sat down by {hero}]. "[Things can be mended|It is only {shade.a} {thing}|You
        are worth more than any {thing}|I broke one too when I was little|I never liked its color|We will see what we
        can do|Did you hurt yourself? No? Good]," {pal.he} said<tone>. "[Thank you for telling me|I am glad you told
        me|It is brave to tell|What counts is] the truth." // <mend> <broken_end>
confess
    {hero}[ took a deep breath| stood up| looked at the floor| counted to {years=numbers}|'s heart beat fast|'s ears
        turned red]. "I broke it," {hero.he} said<tone>. "[I am so sorry|I'm very sorry|Please don't be angry|It was
        me and not the cat]. The pieces are {hide}."
    {hero} began to cry. "It was me," {hero.he} [said|sobbed|whispered]. "I [was not careful|did not listen to you|was
        too wild], and then I hid the pieces {hide}. [I am so sorry|I'm sorry|I wish I had not done it]."
mend
    [Together they|They] [took|got] the pieces {hide.from} and [glued|put|stuck] them together, [one by one|bit by
        bit|very slowly|piece by piece|like a puzzle].
    {pal} [found|fetched|brought|borrowed] [some|a pot of|a tube of|a jar of|a drop of|lots of] glue[ and a [brush|
        lamp|cloth|small stick]|], and {hero} got the pieces {hide.from}. They [worked|glued and glued|talked and
        glued] [all evening|for an hour|until bedtime|until it was dark].
broken_end
    <soon>, the {shade} {thing} stood in its [old |]place[ again|]. It had [a crack|some cracks|a hole] now, but
        [{hero} thought it looked like {like=likeness}|{pal} liked it even more|nobody minded|that did not matter].
    The {shade} {thing} was [never|not] the same, but it was whole again. And {hero} always told the truth after
        that[, even when it was hard| to {pal}|].
    <praise> The {shade} {thing} [got|had] a new place, [far from any games|high up|where nobody danced].

rescue
    <one_day>, {hero} <went> to {place=kind.places}.[ <on_the_way>|] There {hero.he} heard a [small|tiny|sad|soft|
        strange|high] [sound|cry|voice|peep|sigh]. {hero.He} looked around. {Spot=place.spots}, there [was|sat|lay]
        {size.a=smalls} {patient=patients}. It was [cold|shaking|wet|all alone|hungry] and [could not move|had hurt
        itself|looked very weak|did not know where to go]. // "[Poor|You poor] little {patient}," [said|whispered]
        {hero}<tone>. "[Don't be afraid|I will help you|I will take care of you|You can come with me]." {hero.He} had
        {shade.a=shades} {thing=boxes} with {hero.him}. {hero.He} [lined|padded] the {shade} {thing} with [soft grass|
        leaves|moss|wool|hay|petals] and put the {patient} [inside|in it], very <carefully>. Then {hero.he} [carried|
        took] it home. // {hero.His} {pal.intro=kind.elders} [looked at|bent over|smiled at] the {patient}. "It needs
        [rest|warmth|sleep|peace] and [water|something to eat|a quiet place|a friend|a song]," said {pal}<tone>. So
        {hero} [put|set] the {shade} {thing} [near the stove|by the window|in a warm corner|next to the bed|on a soft
        chair]. [Every|Each] [morning|day|evening], {hero.he} [brought|gave] the {patient} [water|crumbs|fresh leaves|
        seeds|berries|warm milk] and [sang to it|told it stories|talked to it|kept it warm|named it after {pal}]. //
        After [three days|a week|{days=numbers} days|some time|a month], the {patient} was [well|strong|healthy|happy]
        again. {hero} [carried|took] the {shade} {thing} back to {place} and [opened {hero.his} {kind.hands}|set it on
        the ground|waited]. "[Goodbye|Farewell|Be well|Take care], little {patient}," {hero.he} said<tone>. The
        {patient} looked back [once|twice|for <a_while>] and [was gone|went on its way]. {hero} was [a little |both |
        ]sad and [a little |very |]<happy>. // <rescue_end>
rescue_end
    [One morning|In spring|A month later|The next week|One night], {hero} heard a sound at the window. It was the
        {patient}! It [came|had come] to [say hello|say thank you|visit {hero.him}|bring {load?=loads}], and it slept
        in the {shade} {thing} [one more time|that night|just like before].
    {hero} [kept|saved] the {shade} {thing}[, and it [always stood|stood] by the window, [just in case|ready for the
        next guest|where the sun came in]|]. <praise>
    [Now|From that day on], whenever {hero} went to {place}, the {patient} [came to say hello|was waiting {spot}|
        followed {hero.him}]. <ever_after>

wish
    <one_day>, {hero} [saw|spotted|found] {shade.a=hues} {thing=wares} in [the window of a shop|a shop window|the
        market square|a dusty old shop]. It was [the most beautiful|the nicest|the best|the finest] {thing} {hero.he}
        had ever seen. "[How much is|What is the price of] the {shade} {thing}?" asked {hero}<tone>. "{Price=numbers}
        coins," said {title=titles} {surname=surnames}, the {folk=folk}. But {hero} had [no money|only one coin|only
        two coins|nothing but a button|nothing but {load?=loads}]. // {hero} <ran> home and [told|asked] {hero.his}
        {pal.intro=kind.elders} [about it|what to do|for help]. "[If you help me, I will pay you|You can earn it|Good
        things take work|I know a way]," said {pal}<gladly>. So on {weekday=weekdays}, {hero} {chore.past=chores}. On
        {weekday.next}, {hero.he} {chore2.past=chores-chore}[, and {hero.he} {chore3.past=chores-chore-chore2} [too|as
        well]|]. [It was hard work|{hero.His} {kind.hands} hurt|{hero} got tired|Sometimes {hero.he} wanted to stop],
        but {hero.he} thought of the {shade} {thing} and [went on|did not give up|kept going|smiled|whistled a tune].[
        <aside>|] // <soon>, {hero} counted the coins in {hero.his} [jar|pocket|little bag|old sock|cup]. There were
        {price}! {hero.He} <ran> [all the way |]to {title} {surname}. <still_there> // <joy> <wish_end>
still_there
    The {shade} {thing} was still [there|in its place|waiting]. "Here are {price} coins," said {hero}<gladly>. "[It is
        all yours|You worked hard for it|Enjoy it|Take good care of it]," said {title} {surname}.
    But its place was empty! "[I am sorry|What a pity|Too late], it is sold," said {title} {surname}. <tears> Then
        {hero.he} walked home [slowly|with the coins in {hero.his} pocket|in the rain]. And there, on the table, was
        the {shade} {thing}. "[Surprise|It is for you|Look what I found]!" said {pal}<gladly>. "[Keep your coins|You
        worked so hard|You never gave up]."
wish_end
    {hero} took [good|great] care of the {shade} {thing}, because {hero.he} had [worked|waited] for it [so hard|so
        long].
    <praise>[ <bedtime>|]
    <bedtime>
    [Every|The next] day, {hero} let {hero.his} friends [play with|try|share] the {shade} {thing}[ too| as well|].
        <ever_after>

build
    <one_day>, {hero} and {hero.his} {pal.intro=kind.friends-hero} [wanted|decided|had a plan] to [build|make]
        {shade.a=sizes} {thing=buildings} {place.at=kind.places}. They [found|gathered|collected|carried|borrowed]
        {stuff=materials} and {stuff2=materials-stuff}.[ <aside>|] They [worked|built|dug] <how_long> and [sang|
        laughed|told jokes|hummed|talked] [while they worked|all the time]. // [Then|Suddenly|But then],
        {crash=crashes}. [[Crash|Bang|Crack|Boom|Rumble]! |]The {shade} {thing} fell down. Only a [heap|pile|mess] of
        {stuff} and {stuff2} was left. "<oh_no>!" <cried> {hero}. <tears> "[I give up|It is no use|We will never
        finish it|I want to go home]," {hero.he} said<tone>. // "[Let's|We can|We must] try again," said
        {pal}<gladly>. "[This time|Now], we [need|should use|will take|want] {stuff3=materials-stuff-stuff2}." [So
        they|They] [started|began] [again|from the beginning]. {hero} [held|carried|brought|fetched] the {stuff3}, and
        {pal} [put everything together|made everything tight|tied everything up|held everything straight]. [Step by
        step|Slowly|Little by little|Bit by bit], the {shade} {thing} grew[ [bigger|taller|and grew]|]. // <stands>
        <joy> // <build_end>
stands
    [When it was done|In the evening|At last], {hero} [pushed|shook|kicked|leaned on] it [a little|to see what would
        happen]. The {shade} {thing} [stood still|did not move|did not fall].
    <soon>, {crash.again}, but the {shade} {thing} [stood|stayed up|did not fall|only shook a little].
build_end
    [That evening|When the stars came out|At sunset], they sat [in front of|next to|beside] the {shade} {thing} and
        [ate|shared|had] <food>[ with <topping>|]. "[We did it|We make a good team|It is even better than before],"
        said {pal}<gladly>.
    <play_after> The {shade} {thing} stood there for [a long time|many years|the whole summer|{years=numbers} years].
    [{hero} learned|They learned|They never forgot] that [falling down is not the end|two friends can build anything|
        the second try is often the best]. <ever_after>
    <visitors>

learn
    <one_day>, {hero} [got|was given|found|bought] {shade.a=hues} {thing=skills}. {hero.He} [wanted|hoped|tried] to
        {thing.use} it [like the big kids|right away|better than anyone|without any help]. But the first time
        {hero.he} tried, {thing.fail}. The second time, {thing.fail}[ again|, and [everyone|a crow|the neighbor|a
        goat|even {hero.his} shadow] laughed]. "[I can't do it|This is too hard|I will never learn|It does not like
        me]!" <cried> {hero}. <tears> // <pal_comes> [<ask> |]"[I can't|I will never] {thing.use} my {shade} {thing},"
        said {hero}<tone>. "[It was hard for me, too|I could not do it either|I fell on my nose at first]," said
        {pal}<tone>. "[You need to practice|Try it every day|Go slowly and don't give up|The first time is always
        funny]." // So {hero} [practiced|tried] [every day|every morning|every day after school|before every supper|
        day after day].[ <aside>|] On {weekday=weekdays}, {hero.he} [got it wrong|made a mistake] {times=falls} times.
        On {weekday.next}, it was only {times.less}. {pal} [clapped|cheered|nodded|watched] [every time|and waited|and
        asked for [more|one more try|it again]|and helped]. // [Then one|One] {sky?=skies} <day>, {hero} {thing.win}!
        "[Look|Look at me|I can do it|I did it|Did you see that], {pal}!" {hero.he} [cried|called|shouted|laughed].
        <joy> // <learn_end>
learn_end
    <praise>[ <bedtime>|]
    <praise> And [when anyone|when a friend|if somebody] [found something hard|wanted to give up|felt <sad>], {hero}
        [told them about|showed them] the {shade} {thing}.
    <treat_after> "[Now|Tomorrow] I will teach {guest=kind.friends-hero-pal} to {thing.use} the {shade} {thing} [too|
        as well]," [said|promised|laughed] {hero}.

found
    <one_day>, {hero} was {place.at=kind.places}.[ <aside>|] [There|Suddenly|Then], {spot=place.spots}, {hero.he}
        [saw|found|spotted|noticed] {shade.a=shades} {thing=finds}. "[Whose is this|Who lost this|Where did this come
        from]?" {hero.he} [asked|wondered|said]. But [nobody|no one] was there[, only <animals>|]. {hero} [wanted to
        keep it|liked it very much|put it in {hero.his} pocket]. Then {hero.he} thought, "[Somebody|Someone] must be
        very <sad> [without it|now]." // So {hero} <went> to {title=titles} {surname=surnames}, the {folk=folk}. "Is
        this {shade} {thing} yours?" {hero.he} asked<tone>. "No," said {title} {surname}, "[mine is in my pocket|mine
        is much bigger|I have never seen it|I don't have {thing.a}|I am looking for {load?=loads}]. [Ask|Try]
        {title2=titles} {surname2=surnames-surname}, the {folk2=folk-folk}." {hero} [asked|went to|ran to] {title2}
        {surname2}. "[I am sorry|No], it is not [mine|my {thing}]," said {title2} {surname2}[, "but it is very [nice|
        pretty|fine]."|. "[Keep looking|Good luck|Don't give up]!"] // {hero} [did not give up|walked on|went on
        asking]. <owner> "My {shade} {thing}!" {pal.he} <cried>. "I [looked|have looked] for it everywhere[, even
        {miss=place.spots-spot}|]. [Thank you|Thank you so much|I thank you], {hero}!"[ <joy>|] // <reward>
owner
    At [the corner|the gate|the bridge|the end of the road|the well], {hero} met {hero.his} <pal>. {pal} was [looking
        for something|crying|looking at the ground|very <sad>].
    [At home|In the evening|Before supper], {hero} showed the {shade} {thing} to {hero.his} <pal>. {pal}'s eyes grew
        [big|wide|round].
reward
    [Then|The next day], {pal} gave {hero} {shade3.a=tastes} {treat=treats}, and [they ate it together|{hero} ate it
        all up|it was the best {treat} in the world]. <found_moral>
    <praise> <found_moral>
    <play_after> <found_moral>
found_moral
    And the {shade} {thing} was [back where it belonged|never lost again|home again].
    {hero} [felt|knew] that [giving back|being honest] [is|was] better than [any {thing}|keeping {shade.a} {thing}|a
        pocket full of treasures].

gift
    It was [almost|nearly|two days before|one week before|the day before] the birthday of {hero.his} <pal>. {hero}
        wanted to give {pal} [something|a gift that was] [nice|special|beautiful|unusual], but {hero.he} had no
        [money|coins]. "[I will make something|I can make a gift|I know what I will do]," {hero.he} [thought|said]. "I
        will make {shade.a=hues} {thing=gifts}!" // {hero} [found|took|collected|bought] {craft=crafts},
        {craft2=crafts-craft} and {craft3=crafts-craft-craft2}. {hero.He} [cut|glued|worked|measured] and [painted|
        folded|tied|hummed] [all day|for hours|in secret|until {hero.his} {kind.hands} were sticky|by candle light].
        [The first one [fell apart|was too small|looked funny|looked like {like=likeness}], so {hero} [made|started]
        another one. |]"What are you doing?" [asked|called] {pal}. "Nothing," said {hero}<tone>, and [quickly |]hid
        the {shade} {thing} {hide=hideouts}. // [At last|Then] the birthday came. There was [cake|music|dancing|
        lemonade|laughter], and there were [candles|balloons|games|paper hats|flowers]. [{guest=kind.friends-hero-pal}
        and {guest2=kind.friends-hero-pal-guest} [came|sang a song|brought {load?=loads}]. |]{hero} <ran> to get the
        {shade} {thing}. [It was still {hide}.|But it was not {hide}! "<oh_no>!" <cried> {hero}. <gift_back>] "[Happy
        birthday|This is for you|I made it for you], {pal}!" {hero.he} said<gladly>. // {pal} looked at the {shade}
        {thing} [for a long time|with big eyes|from all sides|without a word]. "[You made this|Did you make this] [for
        me|all by yourself]?" {pal.he} asked<tone>. "[It is the best gift of all|I love it|I will keep it forever]."
        <gift_end>
gift_back
    {hero} looked {hide2=hideouts-hide}[ and {hide3=hideouts-hide-hide2}|]. There it was!
    The [cat|puppy|baby] [sat|was sitting] {hide2=hideouts-hide} and [played|was playing] with it. [Luckily|Thank
        goodness], it was [still |]whole.
gift_end
    <joy> <play_after>
    <praise> <ever_after>
    [Ever since|From that day on], the {shade} {thing} [had the best place in {pal}'s house|was {pal}'s favorite
        thing|was never far from {pal}]. <ever_after>

grow
    <one_day>, {hero.his} {pal.intro=kind.elders} gave {hero} [a tiny|one small|a round brown|a flat white] seed.
        "[This is|It is] {plant.a=plants} seed," said {pal}<gladly>. "[Be good to it|Give it water and sun|Take care
        of it|Talk to it][, and wait| and be patient|]." {hero} filled {shade.a=shades} {thing=pots} with [soft |dark
        |black |warm |]earth. {hero.He} [pushed|put] the seed in [with one finger|<carefully>|deep] and [set|put] the
        {shade} {thing} [on the window sill|by the back door|in a sunny corner|next to {hero.his} bed|on the garden
        wall]. // [Every|Each] [morning|day], {hero} gave it water. [Every|Each] [evening|night], {hero.he} [said good
        night to it|sang to it|told it a story|looked for a leaf|told it about <sight>]. {Days=numbers} days went by,
        but nothing [grew|happened|came up]. <tears> "[Maybe|Perhaps] [the seed is asleep|I did it wrong|it does not
        like me|it wants {load?=loads}]," {hero.he} said<tone>. "[Wait|Be patient]," said {pal}<gladly>. "[Good things
        take time|Seeds work in the dark|It is growing where you can't see it]." // [So {hero} waited|{hero} waited
        and waited]. [It rained, and then the sun came out|The days grew warm|A week went by|The moon grew round].
        Then, one [morning|day|{sky?=skies} <day>], there was [a green dot|something green|a tiny leaf|a thin green
        thread] in the {shade} {thing}! "<hooray>! [Come and see|Come quickly|Come and look], {pal}!" <cried> {hero}.
        It grew [taller and taller|day by day|like magic|as if it had no time to lose]. <soon>, it [was as tall as
        {hero}|had a hundred leaves|reached the ceiling|looked out of the window]. // <grow_end>
grow_end
    [In summer|Soon after|And then], there [was|grew] {size.a=grown} {plant} in the {shade} {thing}. <joy> <praise>
    When the {shade} {thing} was too small for it, {hero} and {pal} [planted|put] it in the [garden|ground|yard]. [And
        in|That] fall, it gave {hero} {seeds=numbers} new {plant} seeds. {hero} gave [one|two|some] to
        {guest=kind.friends-hero} and {guest2=kind.friends-hero-guest}, and [put|dropped] the last one in the {shade}
        {thing}.
    [One morning|At last|In the end], there was {size.a=grown} {plant} on it. {hero} [wanted|decided] to give it to
        {pal}. "[You gave me a seed|It came from you], and I give you {plant.a}," said {hero}<gladly>. The {shade}
        {thing} [was full again by spring|got a new seed the same day]. <praise>

night
    It was [late|dark|a dark night|bedtime|almost midnight]. {hero} [lay|was] in bed with {hero.his} {shade=shades}
        {thing=comforts}. [The house was quiet|Everyone was asleep|The moon was behind the clouds|Even the wind was
        asleep|It was too warm to sleep]. Then {hero.he} heard [a noise|a strange sound|something]. "{Noise=noises}!"
        // {hero} [sat up|pulled the covers over {hero.his} head|held {hero.his} breath|put {hero.his} fingers in
        {hero.his} ears]. {hero.His} heart [beat|went] very fast. "[Who is there|What is that|Is it a monster|Who are
        you]?" {hero.he} whispered[ to the {shade} {thing}|]. [Nobody answered|The {thing} did not answer|It was quiet
        for <a_while>]. [There it was again|It came again|Then it came back]: "{Noise}!" {hero} [hugged|held|squeezed]
        the {shade} {thing} [tight|as hard as {hero.he} could|with both {kind.hands}]. // "{pal=kind.elders}!"
        [called|cried|shouted] {hero}. {pal} came [running|at once|quickly] [with a lamp|with a candle|in {pal.his}
        slippers|in {hue?=hues} pajamas]. <ask> "[I heard a noise|Something is out there|There is a monster|I can't
        sleep]," said {hero}<tone>. "It goes '{noise}'." "[Let's|We will] go and see," said {pal}<tone>. "[Bring|Take]
        your {thing}[, too|, and don't be afraid|]." // [Hand in hand|Side by side|Very slowly|On tiptoe|Step by
        step], they [went|walked|crept] [down the hall|to the window|to the door|through the dark house|down the
        stairs]. "{Noise}!" [{pal} held up the light|They looked and looked|{hero} opened one eye|{hero} held on to
        {pal}]. And what [was it|did they see]? It was only {noise.cause}! <night_laugh> // <night_end>
night_laugh
    {hero} [laughed|began to laugh|giggled]. "[You are not a monster|So it was you|That is not scary|How silly of
        me]," {hero.he} said<gladly>.
    {pal} [laughed|smiled], and {hero} laughed too. "[The dark is|Night is|The night is] full of [small things|funny
        things|friends|stories], not monsters," said {pal}<gladly>.
    "[Was that all|Is that the monster]?" said {hero}<gladly>. "[Everyone is afraid sometimes|Things sound bigger at
        night|Even I was afraid]," said {pal}<tone>.
night_end
    <praise> Soon {hero} was [fast |]asleep, with the {shade} {thing} in {hero.his} arms.
    {hero} [went back to bed|lay down again] and [tucked in|kissed|put down] the {shade} {thing}. "[Don't be afraid|
        Sleep well|Good night]," {hero.he} [told it|whispered]. "It is only {noise.cause}."
    From that night on, {hero} was not afraid of [the dark|noises][ anymore|]. When something went "{noise}", {hero}
        [only smiled|just turned over] and [hugged|held] the {shade} {thing}.
    That night, {hero} dreamed [of|about] <sight> and the {shade} {thing}.

newcomer
    <one_day>, {hero} <went> to {place=kind.places} with {hero.his} {shade=shades} {thing=toys}.[ <on_the_way>|]
        [There|Then|And there], {spot=place.spots}, {hero.he} saw [someone new|a new face|somebody]. It was
        {pal.full=kind.friends-hero}, and {pal.he} was all alone. {pal} [looked|seemed] [shy|lonely|<sad>].[ <aside>|]
        // [At first|For <a_while>], {hero} [did not know what to say|was shy too|just watched|only nodded]. Then
        {hero} thought, "[When I am alone, I feel <sad>|Everybody needs a friend|It is no fun to be alone|Somebody has
        to say the first word]." So {hero.he} [went over|walked up] and [held out|showed] the {shade} {thing}. "[Hi|
        Hello|Good day], I am {hero}," said {hero}<tone>. "[Do you want|Would you like] to play with my {thing}?" //
        {pal} [looked up|blinked|smiled a little|nodded]. "[Yes, please|I would love to|Oh yes|Very much]," {pal.he}
        [said|whispered]. "[I have never had|I always wanted|I used to have|I dreamed of] {shade.a} {thing}. [And I
        like|I also like|But most of all I like] to {hobby?=hobbies}!" "[Me too|So do I|That is what I like best]!"
        [said|cried] {hero}. They played with the {shade} {thing}, and then they {hobby.past}[ <until>|]. // <new_end>
new_end
    When it was time to go, {hero} [gave|lent] the {shade} {thing} to {pal}. "[You can keep it for tonight|Bring it
        back tomorrow|Take it home with you]," {hero.he} said<gladly>. The next day, {pal} [came|was there] with the
        {shade} {thing} and {shade2.a=shades-shade} {thing2=toys-thing}. [Now they had two things to play with|They
        played with both|It was a gift for {hero}]!
    [From that day on|After that], {hero} and {pal} [were best friends|met there every day|were always together], and
        the {shade} {thing} [belonged to both of them|was always with them|was never lonely].
    <treat_after> "[You were|You are] my first friend here," said {pal}<tone>. <praise>
    [Soon|Later that day], {guest=kind.friends-hero-pal} and {guest2=kind.friends-hero-pal-guest} came [by|along|to
        see the new {thing}], and [all four|they all] [played|laughed|ran about] <how_long>. The {shade} {thing} was
        never so [busy|dusty|happy].

signal
    {hero.His} {pal.intro=kind.elders} gave {hero} {shade.a=hues} {thing=signals}. "[If you are ever in trouble|When
        you need me|If you get lost|If you are afraid], {thing.do} it, and I will come," said {pal}<tone>. {hero}
        [tied it to {hero.his} belt|put it in {hero.his} bag|took it everywhere|said thank you]. // <one_day>, {hero}
        <went> to {place=kind.places}.[ <on_the_way>|] There {hero.he} [followed|ran after|chased] {chased=chased},
        [farther and farther|on and on|over hills and ditches|deeper and deeper into the bushes]. When {hero.he}
        [stopped|looked around|turned back], {hero.he} did not know the way home. <darker>[ <aside>|] <tears> //
        "[Help|Hello|Is anyone there|{pal}]!" [called|shouted|cried] {hero}. But [nobody|no one|only the wind|only
        <animals>] answered. Then {hero} remembered the {shade} {thing}! {hero.He} [took it out|held it tight|wiped it
        clean] and {thing.did} it [as loud as {hero.he} could|again and again|with all {hero.his} might|
        {times=numbers} times]. "{Thing.sound}! {Thing.sound}!" // [Far away|At home|On the other side of the hill|In
        the kitchen], {pal} heard it. {pal.He} [dropped everything|put on {pal.his} boots|took a lantern|left the soup
        on the stove] and ran [toward|after] the sound[, [over the bridge|past <animals>|through the tall grass|as
        fast as {pal.he} could]|]. <soon>, {pal} [found {hero}|was there], {spot=place.spots}. "[I am here|There you
        are|I have got you|I heard you]," said {pal}[, and hugged {hero} [tight|for a long time]|]. // [<homeward> |
        ]<signal_end>
darker
    [The sun was going down|It was getting dark|The shadows were long|A fog came up|It began to rain].
    All the [trees|paths|bushes|stones|hills] looked the same.
signal_end
    "[You did the right thing|That was clever|I am proud of you|You kept your head]," said {pal}<tone>. <bedtime>
    <thanks> <treat_after> The {shade} {thing} [had|got] its own [chair|place at the table|plate].
    {hero} never [followed|ran after] {chased} again, and {hero.he} never left home without the {shade} {thing}.

swap
    {hero} had {shade.a=shades} {thing=toys}. {hero.His} {pal.intro=kind.friends-hero} had {shade2.a=shades-shade}
        {thing2=toys-thing}. <one_day>, they [met|played|sat] {place.at=kind.places}.[ <aside>|] "[I like|I wish I
        had|How I love] your {thing2}," said {hero}<tone>. "[And I like|I like|I always wanted] your {thing}," said
        {pal}<tone>. "[Shall we swap|Do you want to trade|Would you swap with me][ for ever|]?" So {hero} gave {pal}
        the {shade} {thing} and got the {shade2} {thing2}. // [At first|All day long], {hero} [was <happy>|had fun|
        played] with the {shade2} {thing2}. But [at night|when it was dark|after supper], {hero.he} [could not sleep|
        tossed and turned|lay awake|counted sheep]. The {shade2} {thing2} was [nice|fine|pretty], but it was not the
        {shade} {thing}. {hero.He} [missed it|wanted it back] [so much|very much|more and more|with all {hero.his}
        heart]. <tears> // The next [morning|day], {hero} <ran> to {pal}'s house. On the way {hero.he} met {pal}, who
        [ran|was coming] to {hero}'s house! "I [miss|want] my {shade2} {thing2}," said {pal}<tone>. "And I [miss|want]
        my {shade} {thing}," said {hero}<tone>. They looked at each other and [laughed|began to laugh|giggled]. They
        swapped [back|again][, right there, next to <sight>|, {spot=place.spots}|]. // <swap_end>
swap_end
    <play_after> [First|And] they played with the {shade} {thing}[,|] and then with the {shade2} {thing2}.
    <bedtime>
    "[A swap|Swapping] is [good for a day|fun for a day], [but not for ever|and then it is over]," said {pal}<gladly>.
        After that, {hero} [lent|gave] {pal} the {shade} {thing} on {weekday=weekdays}s, and {pal} [lent|gave] {hero}
        the {shade2} {thing2} on {weekday2=weekdays-weekday}s.

bake
    <one_day>, {hero} and {hero.his} {pal.intro=kind.elders} wanted to make {shade.a=tastes} {thing=dishes}[ for
        {guest=kind.friends-hero}|]. They [put on|tied] their aprons and [washed|scrubbed] their {kind.hands}. But
        when {hero} looked in the [cupboard|kitchen|pantry|cellar], [it was out of|there was only {load?=loads} and
        no] {item=missing}! "<oh_no>!" <cried> {hero}. "We can't make {shade.a} {thing} without {item}." "[Go and ask|
        Please go and ask|Why don't you ask] {title=titles} {surname=surnames}, the {folk=folk}," said {pal}<tone>. //
        {hero} <went> to {title} {surname}.[ <on_the_way>|] "May I [have|borrow] some {item}[, please|]?" {hero.he}
        asked<tone>. "I [used the last of it|have no {item}] [today|this morning|just now]," said {title} {surname}.
        "But [why not ask|you can ask|go and see] {title2=titles} {surname2=surnames-surname}, the {folk2=folk-folk}."
        So {hero} [went on|walked on|hurried] to {title2} {surname2}. "[Of course|Here you are|Take all you need|With
        pleasure]," said {title2} {surname2}, and gave {hero} a [bag|jar|box|basket] of {item}. "[But bring|Only
        bring] me a [piece|taste] of your {thing}!" "[I promise|I will|Yes]," said {hero}<gladly>. // [Back home|In
        the kitchen], {hero} [stirred|mixed] and {pal} [tasted|sang|measured|hummed]. [There was {item}|It went]
        [everywhere|on {hero}'s nose|on the floor|on the cat]. <soon>, the whole house smelled [good|of {item}|
        wonderful|like a birthday]. {pal} [opened the oven|looked into the oven|lifted the lid]. "<hooray>! [What
        {shade.a} {thing}|It is ready]!" <cried> {hero}. // <bake_end>
bake_end
    {hero} [did not forget|kept {hero.his} promise]. {hero.He} [carried|took|brought] the first [piece|taste] to
        {title2} {surname2}. "That is the [best|finest] {thing} in [town|the world|the whole village]," said {title2}
        {surname2}. [<praise>|<ever_after>]
    They [invited|called] {title} {surname} and {title2} {surname2} [for supper|to the table|to eat with them]. [There
        was enough for all|Everybody had a big piece|Nobody left hungry], and [nothing|not a crumb] was left of the
        {shade} {thing}. [<ever_after>|<praise>]
    {guest2=kind.friends-hero-guest} and {guest3=kind.friends-hero-guest-guest2} [smelled|heard of] the {thing} and
        came [running|at once]. [There was enough for all|Everybody had a big piece|Nobody left hungry]. <ever_after>
"""
