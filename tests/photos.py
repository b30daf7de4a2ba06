"""Generated photos, as files in the layouts of the data sets."""

import io

import numpy as np
from PIL import Image


def picture(name, mode="RGB", size=(16, 16)):
    """A JPEG of noise, another for every name; `size` is (height, width)."""
    seed = int.from_bytes(name.encode(), "big")
    noise = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "JPEG")
    return file.getvalue()


def write(folder, names):
    """The photos of these names in the folder, each in its own one."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(picture(name))


def write_captions(folder, captions):
    """A folder text_c10 of {"class/photo": sentences}, with the files for Torch beside them."""
    for name, sentences in captions.items():
        path = folder / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{sentence}\n" for sentence in sentences))
        path.with_suffix(".h5").write_bytes(b"\x89HDF")
        (folder / f"{path.parent.name}.t7").write_bytes(b"\x04\0")


def karpathy(images):
    """Karpathy's JSON of (folder or None, name, split, captions), with the fields of his files."""
    content, sentid = [], 0
    for number, (folder, name, split, captions) in enumerate(images):
        sentences = []
        for caption in captions:
            tokens = caption.lower().split()
            raw = {"tokens": tokens, "raw": caption, "imgid": number, "sentid": sentid}
            sentences.append(raw)
            sentid += 1
        image = {"sentids": [s["sentid"] for s in sentences], "imgid": number}
        image |= {"sentences": sentences, "split": split, "filename": name}
        content.append(image | ({} if folder is None else {"filepath": folder, "cocoid": number}))
    return {"images": content, "dataset": "test"}
