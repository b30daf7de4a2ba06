"""The protocols of retrieval that have a name: one list of them and of their sizes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Protocol(NamedTuple):
    """How many images a test set has, and in how many consecutive folds it is scored."""

    images: int
    folds: int = 1


PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        "flickr8k_1k": Protocol(1000),
        "flickr30k_1k": Protocol(1000),
        "coco_5k": Protocol(5000),
        "coco_1k_5fold": Protocol(5000, folds=5),
        "cub_5794": Protocol(5794),
        "flowers_6149": Protocol(6149),
    }
)
# Of a data set as it is released, the protocol of its whole test split.
OWN: Mapping[str, str] = MappingProxyType(
    {
        "flickr8k": "flickr8k_1k",
        "flickr30k": "flickr30k_1k",
        "coco": "coco_5k",
        "cub": "cub_5794",
        "flowers": "flowers_6149",
    }
)


def own(dataset: str, images: int) -> str:
    """The protocol of a released data set's own test split of so many images.

    A name promises its size: another number of images, a part of them, is another protocol.
    """
    name = OWN.get(dataset)
    return name if name and PROTOCOLS[name].images == images else f"{dataset}_{images}"
