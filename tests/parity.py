"""PyTorch and what builds on it, for the tests that compare with them."""

import warnings
from functools import cache

import pytest

REASON = "needs the extra [parity]"
# What torchvision's Python declares at import and its compiled half defines.
_OPERATORS = ("nms", "qnms")


def torch():
    return pytest.importorskip("torch", reason=REASON)


def transformers():
    return _on_torch("transformers")


def timm():
    return _on_torch("timm")


def _on_torch(name):
    torch()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Their deprecations are not ours.
        _torchvision()
        return pytest.importorskip(name, reason=REASON)


@cache
def _torchvision():
    """Makes torchvision importable beside a PyTorch that it was not built for, or does nothing.

    timm needs its Python only, and so does transformers where it is installed; but PyPI has its
    CUDA build alone, whose compiled half does not load beside the CPU build of PyTorch.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        library = torch().library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        # Kept alive: with it go the definitions.
        _torchvision.library = library


def randomize(model, seed=0):
    """The model with weights under which every layer and every bias matters, for evaluation."""
    lib = torch()
    generator = lib.Generator().manual_seed(seed)
    with lib.no_grad():
        for name, value in model.named_parameters():
            drawn = lib.randn(value.shape, generator=generator)
            scale = value.ndim == 1 and "norm" in name.lower() and name.endswith("weight")
            value.copy_(1 + 0.2 * drawn if scale else 0.2 * drawn)
    return model.eval()


def saved(model, folder):
    """The folder, with the model's weights and configuration."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder)
    return folder
