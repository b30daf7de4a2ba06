"""Labels pictures by what their captions are about, for `data.labels`.

    python scripts/head_noun_labels.py --config=configs/flickr8k.py --output=labels.jsonl \
        [--least=50] [--config.data.manual_dir=... and others]

A picture's label is the head noun on which more than half of its captions agree, such as "dog" of
"Two black dogs run through the snow"; only labels of at least --least training pictures are
classes, and other pictures have no line. The head is found by rule (head_nouns.py), in English:

- The subject is what stands before the first verb, preposition, participle, pronoun, conjunction or
  punctuation behind a noun; its last noun is the head. Adjectives and "there is" are passed over,
  as are participles before the first noun ("a smiling girl") and owners ("a woman's hat").
- "A group of people", "a pair of dogs", "a picture of a boat": the head is behind "of".
- Verbs are those of a list; behind "a dog" every word in -s is one, behind a plural any word that
  is none.
- Plurals become singular: "dogs" is "dog", "women" is "woman", and "people" is "person". Otherwise
  words are as they stand: "kid" is not "child".

The table of classes, with pictures by split, goes to stderr.
"""

import collections
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import config_command
from absl import flags
from head_nouns import head_noun
from ml_collections import ConfigDict

from vse_jax import config as configs
from vse_jax import config_checks
from vse_jax.data import datasets, whole_file
from vse_jax.data.split import DataError, Split

log = logging.getLogger("vse_jax.head_noun_labels")


def write(config: ConfigDict, output: Path, least: int) -> None:
    """Writes the labels of the pictures of a config's data set, and prints what there is of each.

    Args:
      config: names the data set; limits of splits are those of runs, not of this.
      output: the file.
      least: training pictures that a class must have.

    Raises:
      ConfigError, DataError: for the user's mistakes; no class has so many training pictures.
    """
    if least < 1:
        raise configs.ConfigError(f"--least is {least}; it must be 1 or more")
    config = configs.resolved(config)
    config_checks.validate(config)
    config = configs.with_absolute_paths(config)
    # Labels are of whole pictures, and of all.
    config.data.labels = config.data.snippets = None
    config.data.train_limit = config.data.validation_limit = None
    splits = datasets.load(config.data, config.seed).splits
    found = {name: of_split(split) for name, split in splits.items()}
    counts = {name: collections.Counter(labels.values()) for name, labels in found.items()}
    classes = {label for label, count in counts["train"].items() if count >= least}
    if not classes:
        most = counts["train"].most_common(1)
        told = "{!r}, has {}".format(*most[0]) if most else "there is none, has 0"
        raise DataError(
            f"no class has --least={least} training pictures; the most frequent, {told}: lower it"
        )
    lines = [
        json.dumps({"image": image, "label": label}) + "\n"
        for labels in found.values()
        for image, label in labels.items()
        if label in classes
    ]
    text = "".join(lines).encode()
    advice = "give a path with room and permission to write"
    whole_file.write(output, lambda file: file.write(text), advice)
    print(table(classes, counts, splits), file=sys.stderr)
    log.info("%s: %d pictures of %d classes", output, len(lines), len(classes))


def of_split(split: Split) -> dict[str, str]:
    """The label of each picture, by its name, on which more than half of its captions agree."""
    found = {}
    for number, image in enumerate(split.images):
        captions = split.captions_of(number)
        heads = collections.Counter(filter(None, map(head_noun, captions)))
        for head, count in heads.most_common(1):
            if 2 * count > len(captions):
                found[image] = head
    return found


def table(
    classes: set[str], counts: Mapping[str, Mapping[str, int]], splits: Mapping[str, Split]
) -> str:
    """A line a class, the most frequent in training first, with its pictures in each split."""
    ordered = sorted(classes, key=lambda label: (-counts["train"][label], label))
    rows = [(label, [counts[name].get(label, 0) for name in splits]) for label in ordered]
    labelled = [sum(column) for column in zip(*(numbers for _, numbers in rows), strict=True)]
    sizes = [len(split.images) for split in splits.values()]
    rows += [("labelled", labelled), ("of pictures", sizes)]
    width = max(len(label) for label, _ in rows)
    lines = [("", list(splits)), *rows]
    return "\n".join(
        label.ljust(width) + "".join(f"{value:>12}" for value in values) for label, values in lines
    )


def main(arguments: Sequence[str]) -> None:
    """Writes what the command line asks for; a user's mistake ends in one clear line."""
    own = flags.FlagValues()
    least = flags.DEFINE_integer("least", 50, "Training pictures of a class.", flag_values=own)

    def work(config: ConfigDict, output: Path) -> None:
        write(config, output, least.value)

    config_command.run("head_noun_labels", __doc__, arguments, work, own=own, suffix=".jsonl")


if __name__ == "__main__":
    main(sys.argv[1:])
