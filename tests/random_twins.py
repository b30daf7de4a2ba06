"""PyTorch networks with random weights under which every layer matters, and pictures for them."""

import numpy as np


def pictures(height, width=None, count=2):
    """Random uint8 pictures."""
    shape = (count, height, width or height, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def pixels(torch, image, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)):
    """What a PyTorch network is given for these pictures: ImageNet's normalisation by default."""
    values = (image.astype(np.float64) / 255 - np.asarray(mean)) / np.asarray(std)
    return torch.from_numpy(values.astype(np.float32)).permute(0, 3, 1, 2)


def randomize(torch, model, faint=()):
    """Draws all weights and running statistics so that activations neither vanish nor saturate.

    Batch norms whose name ends in one of `faint`, the last of each residual branch, are small.
    """
    torch.manual_seed(0)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                torch.nn.init.normal_(module.bias, 0.0, 0.3)
        if isinstance(module, torch.nn.BatchNorm2d):
            low, high = (0.1, 0.3) if name.endswith(tuple(faint)) else (0.5, 1.0)
            torch.nn.init.uniform_(module.weight, low, high)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)
            torch.nn.init.normal_(module.running_mean, 0.0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def channels_last(tensor):
    """[b, c, h, w] of PyTorch as [b, h, w, c] of NumPy."""
    return tensor.permute(0, 2, 3, 1).numpy()


def torch_shapes(template, name):
    """What PyTorch calls the variables of a Flax tree, with its shapes: {name: shape}.

    Args:
      template: of `jax.eval_shape`.
      name: from a Flax path to the PyTorch name.
    """
    from flax.traverse_util import flatten_dict

    axes = {2: (1, 0), 4: (3, 2, 0, 1)}
    return {
        name(path): tuple(
            leaf.shape[axis]
            for axis in (axes[leaf.ndim] if path[-1] == "kernel" else range(leaf.ndim))
        )
        for path, leaf in flatten_dict(template).items()
    }
