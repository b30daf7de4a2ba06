"""The head of a caption's subject by rule: "dog" of "Two black dogs run through the snow"."""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WORD = re.compile(r"[a-z]+(?:-[a-z]+)*|[0-9]+|'s\b|[^\sa-z]")

# What begins a phrase, by whether one thing is spoken of: behind "a dog" no plural can follow, and
# what ends in s is a verb.
_ONE = _words("a an another each every one this that")
_DETERMINERS = _ONE | _words(
    "the some several many few two three four five six seven eight nine ten eleven twelve dozen "
    "numerous various multiple both all any other others no these those his her their its my our "
    "your more most"
)
# Of these it is told what they consist of, or show.
_CONSISTING = _words(
    "group groups pair pairs couple couples crowd crowds bunch team teams line lot lots number "
    "trio quartet herd flock pack gang row set series collection variety mixture mix assortment "
    "class party band litter handful dozens hundreds thousands member members majority part kind "
    "type sort picture pictures photo photos photograph image portrait view shot close-up closeup "
    "scene side back front top gathering troop troupe cluster"
)
# Before a noun, never the head.
_ADJECTIVES = _words(
    "black white brown tan red blue green yellow orange pink purple grey gray golden gold silver "
    "blond blonde brunette beige maroon teal turquoise dark light bright pale colorful colourful "
    "multicolored multi-colored dark-haired light-colored dark-colored light-skinned dark-skinned "
    "young old older younger elderly middle-aged teenage aged little small big large tiny huge "
    "giant tall short long high low fat thin skinny chubby medium medium-sized mid-sized "
    "large-sized overweight heavy heavyset muscular lone single solitary lonely wet dry dirty "
    "muddy clean sandy snowy grassy rocky dusty icy furry fluffy shaggy hairy bald shirtless "
    "barefoot naked topless nude asian african african-american american caucasian hispanic "
    "indian chinese japanese oriental mexican european asian-american german french english irish "
    "australian very happy sad angry excited cute pretty beautiful handsome attractive lovely "
    "fancy professional amateur casual casually busy empty open crowded wild active playful "
    "athletic agile brave curious strange funny silly goofy serious tired hungry blurry close new "
    "modern wooden metal plastic different same similar identical next last first second third "
    "well-dressed formal airborne outdoor indoor"
)
# Two words for one kind of sport: "a man rock climbing".
_ACTIVITIES = _words(
    "rock ice roller water jet kite wind wake horse horseback bike mountain snow scuba sky bungee "
    "para hang inline dirt cliff street line cross country cross-country tight-rope bull belly "
    "tap break deep-sea fly hula crowd white-water river"
)
_PREPOSITIONS = _words(
    "aboard about above across after against ahead along alongside amid among amongst around as "
    "at atop away before behind below beneath beside between beyond by down during for from in "
    "inside into like near nearby off on onto opposite out outside over past through throughout "
    "to toward towards under underneath underwater until up upon via while with within without "
    "amidst outdoors indoors midair mid-air together alone upside apart asleep"
)
_LINKS = _words(
    "and or but & then who whom whose which that where when while because so also he she they it "
    "we i him them himself herself themselves itself not just full"
)
_BE = _words("is are was were be been being am")
_AUXILIARIES = _BE | _words(
    "has have had having do does did can could will would may might must should seems appears "
    "gets get"
)
# Base forms. What else may stand behind a noun is found by its ending.
_VERBS = _words(
    "act aim appear approach argue arrive attack attempt balance bark bat bathe battle bear beat "
    "begin bend bike bite blow board boat bounce bow box break bring brush build bury buy canoe "
    "carry carve cast catch celebrate chase chat check cheer chew clap clean climb cling close "
    "collect collide come compete contemplate cook cool cover crawl cross crouch cry cuddle cut "
    "cycle dance dangle dash descend dig dip display dive do drag draw dress dribble drink drive "
    "drop dunk eat embrace emerge enjoy enter examine exercise exit explore face fall feed fetch "
    "fight fill fish fix flip float fly follow frown frolic gallop gather gaze get give glance "
    "glide go grab graze greet grimace grin grind grip guard hang hand have head help hide hike "
    "hit hold hop hose hug huddle hunt hurdle inspect interact investigate jog join juggle jump "
    "kayak keep kick kiss kneel knit laugh lay lead lean leap learn leave let lick lie lift light "
    "listen load lock look lounge lunge make maneuver march meet mount move mow navigate nip "
    "observe open pack paddle paint parade participate pass pat paw pedal peek peer perch perform "
    "pet pick picnic pitch place play point poke pole pose pour practice prance prepare present "
    "press pretend proceed pull punch push put race raft raise reach read ready relax rest "
    "retrieve return ride roll row rub run rush sail say scale scream scrape scratch see seem "
    "sell serve set shake share shoot shop shout shovel show sing sit skate skateboard ski skip "
    "slam sled sleep slide smell smile smoke snarl sniff snorkel snowboard soar spar speak speed "
    "spin splash spray spread sprint squat stand stare start stay steal steer step stick stop "
    "stoop stretch strike stroll strum struggle study surf surround swim swing swinge tackle take "
    "talk taste tend test throw tie tip toss touch tour traverse travel trek tread treat trick "
    "trot trudge try tube tug tumble turn twirl twist use vault view visit wade wait wakeboard "
    "walk wander wash watch wave wear weave whisper wind wipe work wrap wrestle write yawn yell"
)
_PAST = _words(
    "ran sat stood threw caught held rode ate took went fell swam flew drove wore made came lay "
    "hit leapt dug hung led shot sang slid spun swung told won wound bent bound built clad caked "
    "shown seen thrown taken worn torn drawn given known blown driven ridden strung set lit laid "
    "hidden upside kept left lost met paid put read spread stuck"
)
_NOUNS_IN_ING = _words(
    "building ceiling clothing crossing king painting railing ring sibling spring string thing "
    "wedding wing swing sling lightning awning evening morning being duckling gosling"
)
_NOUNS_IN_ED = _words("bed bobsled moped seed shed sled steed weed speed breed")
_NOUNS_IN_LY = _words("family fly butterfly lily jelly bully belly dolly trolley")
# They look like plurals.
_SINGULAR = _words(
    "sports tennis gymnastics bus canvas christmas gas lens atlas octopus circus walrus news boss"
)
# Plurals that have no singular here.
_PLURAL_ONLY = _words(
    "pants shorts jeans trousers glasses sunglasses goggles clothes scissors stairs trunks "
    "binoculars police"
)
_IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child",
    "skis": "ski", "taxis": "taxi",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "mice": "mouse", "oxen": "ox",
    "wolves": "wolf", "calves": "calf", "leaves": "leaf", "knives": "knife", "wives": "wife",
    "thieves": "thief", "elves": "elf", "shelves": "shelf", "scarves": "scarf",
}  # fmt: skip
_IN_IES = _words(
    "movies cookies collies zombies hoodies rookies birdies ties pies hippies brownies doggies "
    "eskies pixies yorkies"
)
_IN_OES = _words("shoes canoes toes")


def head_noun(caption: str) -> str | None:
    """The head of the caption's subject, singular and in lower case; None where none is found."""
    words = _WORD.findall(caption.lower())
    if len(words) > 1 and words[0] in ("there", "here", "this", "it") and words[1] in _BE:
        words = words[2:]
    nouns = _subject(words)
    if not nouns and "," in words:  # "On a beach, a dog runs."
        nouns = _subject(words[words.index(",") :])
    return singular(nouns[-1]) if nouns else None


def singular(noun: str) -> str:
    """The singular of an English noun, which is itself where it is one."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    if noun.endswith("men"):
        return f"{noun[:-3]}man"
    if not _is_plural(noun) or noun in _PLURAL_ONLY:
        return noun
    if noun.endswith("ies") and noun not in _IN_IES:
        return f"{noun[:-3]}y"
    cut = noun.endswith(("ches", "shes", "sses", "xes", "zzes")) or noun == "buses"
    cut |= noun.endswith("oes") and noun not in _IN_OES
    return noun[:-2] if cut else noun[:-1]


def _subject(words: list[str]) -> list[str]:
    """The nouns of the subject, of which the last is the head; it may have none."""
    nouns: list[str] = []
    one = False
    for word in words:
        if word == "of" and (not nouns or nouns[-1] in _CONSISTING):
            nouns, one = [], False
        elif word in ("'s", "'"):
            nouns = []  # Whose it is.
        elif word in _DETERMINERS or word.isdigit():
            if nouns and nouns[-1] != "number":
                break
            one |= word in _ONE
        elif not nouns and (word in _PREPOSITIONS or word in _AUXILIARIES):
            break
        elif nouns and _ends(word, nouns[-1], one):
            if word.endswith("ing") and len(nouns) > 1 and nouns[-1] in _ACTIVITIES:
                nouns.pop()
            break
        elif not _is_modifier(word):
            nouns.append(word)
            one &= word != "couple"  # "a couple kids"
    return nouns


def _ends(word: str, last: str, one: bool) -> bool:
    """Whether a subject ends before the word, `last` being its last noun so far."""
    if not word[0].isalpha() or word in _PREPOSITIONS | _LINKS | _AUXILIARIES | _PAST | {"of"}:
        return True
    if word in _ADJECTIVES or _is_adverb(word):
        return False
    if _is_participle(word):
        return True
    if _is_plural(word):
        return one or not _VERBS.isdisjoint(_bases(word))
    return _is_plural(last)


def _bases(word: str) -> set[str]:
    """What a verb may be that has this form of the third person."""
    bases = {word[:-1]}
    if word.endswith("es"):
        bases |= {word[:-2], f"{word[:-3]}y"}
    return bases


def _is_modifier(word: str) -> bool:
    """Whether a word can stand before the first noun and is none; "and" joins two of them."""
    return (
        not word[0].isalpha()
        or word in _ADJECTIVES | _LINKS
        or _is_adverb(word)
        or _is_participle(word)
    )


def _is_participle(word: str) -> bool:
    ing = word.endswith("ing") and word not in _NOUNS_IN_ING
    return ing or (word.endswith("ed") and word not in _NOUNS_IN_ED)


def _is_adverb(word: str) -> bool:
    return word.endswith("ly") and word not in _NOUNS_IN_LY


def _is_plural(word: str) -> bool:
    if word in _IRREGULAR or word in _PLURAL_ONLY or (word.endswith("men") and len(word) > 2):
        return True
    return word.endswith("s") and not word.endswith(("ss", "us", "is")) and word not in _SINGULAR
