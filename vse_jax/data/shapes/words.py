"""The words of the captions: every meaning has synonyms, and no word has two meanings."""

SHAPE_WORDS = {
    "circle": ("circle", "disc"),
    "square": ("square", "box"),
    "triangle": ("triangle",),
    "star": ("star",),
    "heart": ("heart",),
    "cross": ("cross", "plus"),
    "moon": ("moon", "crescent"),
    "ring": ("ring", "hoop"),
}
# Of any shape.
NOUNS = ("shape", "figure")
COLOUR_WORDS = {
    "red": ("red", "scarlet"),
    "orange": ("orange",),
    "yellow": ("yellow", "golden"),
    "green": ("green",),
    "cyan": ("cyan", "turquoise"),
    "blue": ("blue",),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
}
SIZE_WORDS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
FILL_WORDS = {"solid": ("solid", "filled"), "striped": ("striped", "stripy")}
TONE_WORDS = {
    "white": ("white", "pale"),
    "grey": ("grey",),
    "black": ("black", "dark"),
    "brown": ("brown",),
}
PATTERN_WORDS = {
    "plain": ("plain", "even"),
    "shaded": ("shaded", "fading"),
    "lined": ("lined",),
    "checked": ("checked", "chequered"),
}
PLURALS = {"box": "boxes", "cross": "crosses", "plus": "pluses"}
NUMBERS = {
    2: ("two", "a pair of"),
    3: ("three",),
    4: ("four",),
    5: ("five",),
    6: ("six",),
    7: ("seven",),
    8: ("eight",),
}
# At least so many.
AMOUNTS = {
    2: ("more than one shape", "two or more shapes", "at least two figures"),
    3: ("a few shapes", "several shapes", "several figures"),
}
RELATIONS = {
    "left": ("to the left of", "left of"),
    "above": ("above", "over", "higher than"),
    "front": ("in front of", "partly covering", "partly hiding"),
}
CONVERSES = {
    "left": ("to the right of", "right of"),
    "above": ("below", "under", "beneath"),
    "front": ("behind", "partly covered by", "partly hidden by"),
}
