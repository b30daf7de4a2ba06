"""Pictures and sentences by an exported model, in the place of the code that trained it.

    python use.py photo.jpg another.jpg "two dogs in snow"

prints, as far as the model does that, how similar each picture and sentence are, a caption and the
likeliest class. From Python: `use.Exported("FOLDER").images(["photo.jpg"])`. Beside NumPy this
needs JAX for *.jax_export, ONNX Runtime for *.onnx, Pillow to read pictures and `tokenizers` to
read sentences. What each function takes and gives is told in export.json.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, ...]

# Of EXIF: the tag, and what Pillow calls the turn that makes a picture upright.
ORIENTATION = 0x0112
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Exported:
    """The functions of a model.

    Attributes:
      about: what export.json says.
    """

    def __init__(self, folder: str | os.PathLike[str] = Path(__file__).parent) -> None:
        """Reads export.json; each function is loaded when it is first called."""
        self.folder = Path(folder)
        self.about = json.loads((self.folder / "export.json").read_text(encoding="utf-8"))
        self._loaded: dict[str, Callable[..., Arrays]] = {}
        self._words: Any = None

    def call(self, name: str, *arrays: np.ndarray) -> Arrays:
        """What the function of that name makes of arrays of any number of rows."""
        if name not in self._loaded:
            file = self.folder / self.about["functions"][name]["file"]
            self._loaded[name] = load_onnx(file) if file.suffix == ".onnx" else load_jax(file)
        return self._loaded[name](*arrays)

    def images(self, pictures: Sequence[Any]) -> Arrays:
        """The encodings of pictures: paths, or uint8 [h, w, 3]; of features: [r, f] each.

        Of most models that is one array, the embeddings [n, d]; of those that compare in pairs it
        is `local` [n, r, d], `mask` [n, r] and `pooled` [n, d], for `compare`.
        """
        given = self.about["image"]
        if given["kind"] == "features":
            return self.call("image", *_padded(pictures))
        if given["boxes"]:
            raise ValueError("this model looks at boxes: call('image', pixels, boxes [n, r, 4])")
        return self.call("image", np.stack([pixels(one, given["size"]) for one in pictures]))

    def texts(self, sentences: Sequence[str]) -> Arrays:
        """The encodings of sentences, as those of `images`."""
        return self.call("text", *self.tokens(sentences))

    def tokens(self, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Token numbers int32 [n, l] of sentences, and which of them are real."""
        given = self.about["text"]
        tokens = np.full((len(sentences), given["max_tokens"]), given["padding"], np.int32)
        mask = np.zeros(tokens.shape, bool)
        for row, found in enumerate(self._tokenizer().encode_batch(list(sentences))):
            own = [token for token in found.ids if token != given["dropped"]]
            if len(own) > given["max_tokens"]:  # the token that closes a sentence stays
                own = [*own[: given["max_tokens"] - 1], own[-1]]
            tokens[row, : len(own)], mask[row, : len(own)] = own, True
        return tokens, mask

    def similarity(self, images: Arrays, texts: Arrays) -> np.ndarray:
        """Scores [n, m] of every picture with every sentence; larger is closer."""
        kind = self.about["similarity"]
        if kind == "compare":
            return self.call("compare", *images, *texts)[0]
        if kind == "negative_euclidean":
            apart = images[0][:, None].astype(np.float64) - texts[0][None]
            return -np.sqrt((apart**2).sum(axis=2)).astype(np.float32)
        return images[0] @ texts[0].T

    def captions(self, images: Arrays) -> list[str]:
        """What the model writes of pictures, taking the likeliest word each time."""
        given = self.about["captions"]
        state = self.call("caption_start", images[-1])
        words = np.full(len(state[0]), given["start"], np.int32)
        ended, written = np.zeros(len(words), bool), []
        for _ in range(given["max_tokens"]):
            *after, found = self.call("caption_step", *state, words)
            state, scores = tuple(after), np.array(found)
            scores[:, given["never_written"]] = -np.inf
            words = scores.argmax(axis=1).astype(np.int32)
            ended |= words == given["end"]
            if ended.all():
                break
            written.append(np.where(ended, given["end"], words))
        rows = np.array(written).reshape(len(written), len(words)).T
        name = self._tokenizer().id_to_token
        return [" ".join(name(word) for word in row if word != given["end"]) for row in rows]

    def classes(self, images: Arrays) -> list[str]:
        """The likeliest class of each picture."""
        [found] = self.call("classify", images[-1])
        return [self.about["classes"][number] for number in found.argmax(axis=1)]

    def _tokenizer(self) -> Any:
        if self._words is None:
            from tokenizers import Tokenizer

            self._words = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            self._words.no_truncation()
            self._words.no_padding()
            self._words.encode_special_tokens = True
        return self._words


def pixels(picture: Any, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the whole picture in RGB and upright, bilinear with antialiasing."""
    from PIL import Image

    opened = Image.fromarray(picture) if isinstance(picture, np.ndarray) else Image.open(picture)
    image = opened
    if image.mode.startswith("I"):  # 16 bits
        image = Image.fromarray((np.asarray(image, np.uint32) // 257).astype(np.uint8))
    image = image.convert("RGB")
    try:  # asked after it was decoded, as Pillow turns TIFF itself
        turn = TURNS.get(opened.getexif().get(ORIENTATION, 1))
    except Exception:  # EXIF that cannot be read makes no picture unreadable
        turn = None
    if turn is not None:
        image = image.transpose(Image.Transpose[turn])
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _padded(pictures: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 [n, r, f] of pictures of few and many regions, and which are real."""
    most, width = max(map(len, pictures)), pictures[0].shape[1]
    features = np.zeros((len(pictures), most, width), np.float32)
    mask = np.zeros((len(pictures), most), bool)
    for row, own in enumerate(pictures):
        features[row, : len(own)], mask[row, : len(own)] = own, True
    return features, mask


def load_jax(file: Path) -> Callable[..., Arrays]:
    """A function of *.jax_export."""
    import jax
    import jax.export

    function = jax.jit(jax.export.deserialize(bytearray(file.read_bytes())).call)
    return lambda *arrays: tuple(np.asarray(found) for found in function(*arrays))


def load_onnx(file: Path) -> Callable[..., Arrays]:
    """A function of *.onnx."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # what it tidies up is no warning
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(file), options, providers=providers)
    names = [given.name for given in session.get_inputs()]
    return lambda *arrays: tuple(session.run(None, dict(zip(names, arrays, strict=True))))


def is_picture(given: str) -> bool:
    """Whether an argument names a file; else it is a sentence, which may be longer than a name."""
    try:
        return Path(given).is_file()
    except OSError:
        return False


def main(arguments: Sequence[str]) -> None:
    """Prints what a model makes of the pictures and sentences of a command line."""
    model = Exported()
    pictures = [given for given in arguments if is_picture(given)]
    sentences = [given for given in arguments if given not in pictures]
    if not pictures:
        sys.exit(__doc__)
    images, known = model.images(pictures), model.about["functions"]
    if sentences and "text" in known:
        scores = model.similarity(images, model.texts(sentences))
        for picture, row in zip(pictures, scores, strict=True):
            for sentence, score in zip(sentences, row, strict=True):
                print(f"{score:.4f}\t{picture}\t{sentence}")
    for name, tell in (("caption_step", model.captions), ("classify", model.classes)):
        if name in known:
            for picture, told in zip(pictures, tell(images), strict=True):
                print(f"{picture}\t{told}")


if __name__ == "__main__":
    main(sys.argv[1:])
