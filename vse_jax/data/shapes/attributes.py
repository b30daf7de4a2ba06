"""What an object or a background of a scene can be, and how much saying so tells."""

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "ring")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SIZES = ("small", "large")
FILLS = ("solid", "striped")
TONES = ("white", "grey", "black", "brown")
PATTERNS = ("plain", "shaded", "lined", "checked")

OBJECT = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "fill": FILLS}
BACKGROUND = {"tone": TONES, "pattern": PATTERNS}

# Information in bits: attributes are drawn evenly, so log2 of the number of values; the
# others are round figures near their frequency in scenes.
ATTRIBUTE_BITS = {"shape": 3.0, "colour": 3.0, "size": 1.0, "fill": 1.0}
BACKGROUND_BITS = {"tone": 2.0, "pattern": 2.0}
RELATION_BITS = {"left": 1.5, "above": 1.5, "front": 2.5}
EXACT_COUNT_BITS = 2.0
LEAST_COUNT_BITS = 1.0

# Pixels; the main object of a picture takes the second range and is the largest in it.
PICTURE = 96
DIAMETERS = {"small": ((16, 18), (20, 22)), "large": ((28, 32), (36, 39))}
