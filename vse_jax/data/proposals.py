"""Regions of a photo that may show something: selective search, ranked and thinned out."""

import types

import numpy as np
from jaxtyping import Float, Int, UInt8

from vse_jax.boxes import WHOLE, intersection_over_union
from vse_jax.data.split import DataError

# Chosen by eye on photos of Flickr8k with MobileNetV2's confidence, which small boxes please most:
# with sides from 0.1 of the picture on they crowded on one thing, from 0.2 on three photos of eight
# had fewer than 19 left. 0.15 is a cell of a map of 7 x 7, which cannot tell of less.
SMALLEST = 0.15
# R-CNN's (Girshick et al., CVPR 2014); the search takes ever longer with more pixels. Photos of 224
# pixels had no better boxes when they were enlarged to it.
LONGEST = 500
# A photo has 150 to 500 candidates of that side.
MOST = 500
# R-CNN's. By eye on the same photos, at 0.5 one thing had most of the boxes.
OVERLAP = 0.3
# The whole picture among them: Karpathy & Fei-Fei, CVPR 2015, section 3.1.1.
REGIONS = 20


def selective_search(
    picture: UInt8[np.ndarray, "h w 3"],
    *,
    most: int = MOST,
    smallest: float = SMALLEST,
    longest: int = LONGEST,
) -> Float[np.ndarray, "n 4"]:
    """Boxes float32 (y0, x0, y1, x1), as shares of the picture, of what may be things.

    OpenCV's selective search in its fast mode. The largest come first: those at the top of the
    hierarchy, whose order the paper draws at random. The same picture has the same boxes. None is
    there twice; the whole picture may be one of them.

    Args:
      picture: RGB.
      most: how many boxes at most, the largest.
      smallest: side of a box at least, as a share of the picture's.
      longest: pixels; a picture with a longer side is made smaller first.

    Raises:
      DataError: OpenCV is not there, was built without selective search, or fails.

    Source: Uijlings et al., Selective Search for Object Recognition, IJCV 2013, section 3.
    """
    cv2 = opencv()
    height, width = picture.shape[:2]
    scale = longest / max(height, width)
    if scale < 1:
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        width, height = size
    try:
        found = _search(cv2, np.ascontiguousarray(picture[..., ::-1]))
    except cv2.error as error:
        raise DataError(f"OpenCV's selective search failed: {error}") from error
    # OpenCV orders them by C's `rand`, which no seed of its own reaches: only the set is the same.
    x, y, across, down = np.unique(found, axis=0).T
    large = (down >= smallest * height) & (across >= smallest * width)
    corners = np.stack([y, x, y + down, x + across], axis=1)[large]
    order = np.argsort(-(down * across)[large], kind="stable")[:most]
    return (corners[order] / [height, width, height, width]).astype(np.float32)


def _search(cv2: types.ModuleType, picture: UInt8[np.ndarray, "h w 3"]) -> Int[np.ndarray, "n 4"]:
    """Boxes (x, y, width, height) in pixels of a picture in OpenCV's order of channels, BGR."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(picture)
    search.switchToSelectiveSearchFast()
    return np.asarray(search.process()).reshape(-1, 4)


def opencv() -> types.ModuleType:
    """The module `cv2` with selective search; raises DataError where it is not there."""
    advice = "selective search is OpenCV's: pip install -e '.[regions]'"
    try:
        import cv2
    except ImportError as error:
        raise DataError(f"{advice} ({error})") from error
    if not hasattr(cv2, "ximgproc"):
        raise DataError(f"{advice}, in place of the OpenCV {cv2.__version__} without `ximgproc`")
    return cv2


def non_maximum_suppression(
    boxes: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], threshold: float
) -> Int[np.ndarray, " k"]:
    """The numbers of the boxes that are kept, the best first; of equal scores the first box.

    From the best on, each drops those behind it whose intersection over union with it is above
    the threshold. Source: Girshick et al., R-CNN, CVPR 2014, section 2.2.

    Args:
      boxes: (y0, x0, y1, x1).
      scores: larger is better.
      threshold: of intersection over union, from 0 to 1.
    """
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        overlap = intersection_over_union(boxes[best][None], boxes[left])[0]
        left = left[overlap <= threshold]
    return np.array(kept, np.int64)


def top_boxes(
    boxes: Float[np.ndarray, "n 4"],
    scores: Float[np.ndarray, " n"],
    count: int,
    threshold: float = OVERLAP,
) -> Float[np.ndarray, "r 4"]:
    """The best `count` boxes that non-maximum suppression keeps and, the last, the whole picture.

    The whole picture is there once and suppresses no other; without candidates it is alone.
    Source: Karpathy & Fei-Fei, CVPR 2015, section 3.1.1, with 19 boxes.

    Args:
      boxes: candidates (y0, x0, y1, x1) as shares of the picture.
      scores: larger is better.
      count: boxes beside the whole picture, fewer where there are not as many.
      threshold: see `non_maximum_suppression`.
    """
    parts = np.any(boxes != WHOLE, axis=1)
    boxes, scores = boxes[parts], scores[parts]
    kept = non_maximum_suppression(boxes, scores, threshold)[:count]
    return np.concatenate([boxes[kept], WHOLE]).astype(np.float32)
