"""Two towers trained from pixels in PyTorch, as one writes it with its libraries.

Pictures by `timm`, sentences by `transformers`, heads as the authors of VSE-infinity have them.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from ml_collections import ConfigDict
from torch import nn
from torch.nn import functional

from benchmarks.peak import torch_device, torch_wait
from benchmarks.torch_layers import Pooling, linear_of, norm_of, tensor_of
from benchmarks.torch_objectives import hardest_hinge
from vse_jax import assembly, parallel
from vse_jax.models.backbones import bert, resnet, vit, weights
from vse_jax.optimizer import multiplier

# What torchvision's Python declares at import and its compiled half defines.
_OPERATORS = ("nms", "qnms")
# Not ours to give: counters, numbers of positions, and statistics, which start as ours do.
_BUFFERS = re.compile(r"(running_mean|running_var|num_batches_tracked|position_ids)$")


class Pictures(nn.Module):
    """A network of `timm`: uint8 [b, h, w, 3] to the parts that the config names, [b, n, f]."""

    def __init__(self, params: Any, config: ConfigDict) -> None:
        """Starts from `image/backbone`, whose sizes are those of this project's module."""
        super().__init__()
        ours = assembly.backbone_of(config).make({}, jnp.dtype("float32"), parallel.AXIS)
        self.network = (_resnet if isinstance(ours, resnet.ResNet) else _vit)(params, ours)
        self.features = config.model.image.features
        for name in ("mean", "std"):
            value = 255 * torch.tensor(getattr(ours, name)).reshape(1, 3, 1, 1)
            self.register_buffer(name, value)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Cells row by row, or the whole alone: a class token, or the mean of the cells."""
        # Permuted so, pictures are channels-last as they lie.
        pixels = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        seen = self.network.forward_features(pixels)
        if self.features == "pooled":
            return self.network.forward_head(seen, pre_logits=True)[:, None]
        return seen.flatten(2).transpose(1, 2)


class Whole(nn.Module):
    """A linear layer of the first part, which is the whole."""

    def __init__(self, params: Any) -> None:
        """Starts from a head."""
        super().__init__()
        self.project = linear_of(params["project"])

    def forward(self, parts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """[b, d] of parts [b, 1, f]."""
        del counts
        return self.project(parts[:, 0])


class Words(nn.Module):
    """VSE-infinity's head of sentences: a linear layer, generalized pooling."""

    def __init__(self, params: Any) -> None:
        """Starts from a head."""
        super().__init__()
        self.project, self.pool = linear_of(params["project"]), Pooling(params["pool"])

    def forward(self, parts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """[b, d] of parts [b, n, f], the first `counts` of which are real (on the host)."""
        return self.pool(self.project(parts), counts)


class Cells(Words):
    """VSE-infinity's head of pictures: to the linear layer a perceptron's say is added."""

    def __init__(self, params: Any) -> None:
        """Starts from a head."""
        super().__init__(params)
        self.hidden, self.out = linear_of(params["hidden"]), linear_of(params["out"])
        self.norm = norm_of(params["norm"])

    def forward(self, parts: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """As `Words`."""
        flat = parts.flatten(0, 1)
        embedded = self.project(flat) + self.out(functional.relu(self.norm(self.hidden(flat))))
        return self.pool(embedded.unflatten(0, parts.shape[:2]), counts)


# By `model.network`: of pictures, of sentences.
HEADS: Mapping[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "vsepp": (Whole, Whole),
    "vse_infinity": (Cells, Words),
}


class Towers(nn.Module):
    """Pictures and sentences to vectors of one space, before they are scaled to length 1.

    Modules are named as this project's, for its rules of learning rates.
    """

    def __init__(self, params: Any, config: ConfigDict, reader: Mapping[str, Any]) -> None:
        """Starts from this project's parameters; `reader` is the `config.json` of the BERT."""
        super().__init__()
        section = config.model
        image, text = params["image"], params["text"]
        of_pictures, of_sentences = HEADS[section.network]
        self.image = nn.ModuleDict(
            {"backbone": Pictures(image["backbone"], config), "head": of_pictures(image["head"])}
        )
        self.text = nn.ModuleDict(
            {"reader": _bert(text["reader"], reader), "head": of_sentences(text["head"])}
        )
        self.image_dropout = nn.Dropout(section.image.dropout)
        self.text_dropout = nn.Dropout(section.text.dropout)
        self.normalize = section.image.normalize_features
        self.drop = section.image.drop_parts if section.network == "vse_infinity" else 0.0
        self.pooled_text = section.text.features == "pooled"

    def forward(
        self, image: torch.Tensor, tokens: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """([b, d], [b, d]) of image uint8 [b, h, w, 3], tokens [b, l], lengths [b] (host)."""
        cells = self.image["backbone"](image)
        if self.normalize:
            cells = functional.normalize(cells, dim=-1)
        cells, counts = dropped(self.image_dropout(cells), self.drop)
        mask = (torch.arange(tokens.shape[1])[None] < lengths[:, None]).to(tokens.device)
        words = self.text["reader"](tokens, attention_mask=mask).last_hidden_state
        if self.pooled_text:
            words = (words * mask[..., None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
            lengths = torch.ones_like(lengths)
        captions = self.text["head"](self.text_dropout(words), lengths)
        return self.image["head"](cells, counts), captions


def dropped(parts: torch.Tensor, rate: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A share of each row's parts dropped at random, those kept moved up: (parts, their counts).

    Parts are [b, n, f], behind those kept zero; one is always kept. Counts are on the host, where
    which are kept is drawn. The authors do it row by row, which on a GPU takes a while.
    """
    chance = torch.rand(parts.shape[:2])
    kept = (chance >= rate) | (chance == chance.amax(1, keepdim=True))
    counts = kept.sum(1)
    if not rate:
        return parts, counts
    order = kept.to(torch.uint8).argsort(dim=1, descending=True, stable=True).to(parts.device)
    real = (torch.arange(parts.shape[1])[None] < counts[:, None]).to(parts.device)
    moved = parts.gather(1, order[..., None].expand_as(parts))
    return moved * real[..., None], counts


class TrainStep:
    """Loss, gradient, clipping and Adam (with decay of matrices, AdamW); one batch a call."""

    def __init__(
        self, params: Any, config: ConfigDict, reader: Mapping[str, Any], *, compiled: bool
    ) -> None:
        """Starts from this project's parameters.

        Args:
          params: a tree of NumPy arrays.
          config: of the step; in "bfloat16" the towers compute under autocast.
          reader: the `config.json` of the BERT.
          compiled: whether the towers go through `torch.compile`.
        """
        if torch_device() == "cuda":
            torch.backends.cudnn.benchmark = True
            # As XLA does: float32 products by TensorFloat-32.
            torch.set_float32_matmul_precision("high")
        self.towers = Towers(params, config, reader)
        self.towers.to(torch_device(), memory_format=torch.channels_last)
        self.run = torch.compile(self.towers) if compiled else self.towers
        self.half = config.precision == "bfloat16"
        self.margin, self.clip_norm = config.objective.triplet.margin, config.train.clip_norm
        self.parameters = list(self.towers.parameters())
        groups = _groups(self.towers, config.train)
        self.optimizer = torch.optim.AdamW(groups, config.train.learning_rate, fused=True)

    def __call__(self, batch: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, norm of the gradient before clipping); the batch's transfer is part of it."""
        device = torch_device()
        lengths = torch.from_numpy(batch["token_mask"].sum(1))
        # As a usual loader does, only as wide as the longest caption here.
        tokens = torch.from_numpy(batch["tokens"][:, : int(lengths.max())].astype(np.int64))
        image, ids = (torch.from_numpy(batch[name]).to(device) for name in ("image", "image_id"))
        with torch.autocast(device, torch.bfloat16, enabled=self.half):
            found = self.run(image, tokens.to(device), lengths)
        images, captions = (functional.normalize(x.float()) for x in found)
        loss = hardest_hinge(images @ captions.T, ids, self.margin)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        torch_wait()
        return loss.detach(), norm


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Of a CUDA device: (the most bytes in use while it works above those before, the most)."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    work()
    most = torch.cuda.max_memory_allocated()
    return most - before, most


def _groups(towers: Towers, config: ConfigDict) -> list[dict[str, Any]]:
    """Parameters by their rate, as `train.freeze` says of their names, and by their decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in towers.named_parameters():
        factor = multiplier(name.replace(".", "/"), config.freeze)
        value.requires_grad_(factor is not None)
        key = (factor or 0.0, config.weight_decay if value.ndim > 1 else 0.0)
        groups.setdefault(key, []).append(value)
    return [
        {"params": values, "lr": factor * config.learning_rate, "weight_decay": decay}
        for (factor, decay), values in groups.items()
        if factor
    ]


def _resnet(params: Any, ours: resnet.ResNet) -> nn.Module:
    """`timm`'s ResNet-50 in the sizes of this project's, a block's channels told inside it."""
    inside = tuple(width // 4 for width in ours.hidden_sizes)
    network = _timm().create_model(
        "resnet50", layers=tuple(ours.depths), channels=inside, num_classes=0
    )
    return _filled(network, weights.revert({"params": params}, resnet.TIMM_RULES))


def _vit(params: Any, ours: vit.ViT) -> nn.Module:
    """`timm`'s ViT-B/16 in the sizes of this project's."""
    network = _timm().create_model(
        "vit_base_patch16_224",
        img_size=ours.image_size,
        patch_size=ours.patch_size,
        embed_dim=ours.hidden_size,
        depth=ours.num_hidden_layers,
        num_heads=ours.num_attention_heads,
        mlp_ratio=ours.intermediate_size / ours.hidden_size,
        norm_layer=partial(nn.LayerNorm, eps=ours.layer_norm_eps),
        num_classes=0,
    )
    return _filled(network, _fused(weights.revert({"params": params}, vit.TIMM_RULES)))


def _fused(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with projections to queries, keys and values in one: `transformer.unfuse` undone."""
    whole: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if ".attn.query." in name:
            parts = [tensors[name.replace("query", part)] for part in ("query", "key", "value")]
            whole[name.replace("query", "qkv")] = np.concatenate(parts)
        elif not re.search(r"\.attn\.(key|value)\.", name):
            whole[name] = tensor
    return whole


def _bert(params: Any, reader: Mapping[str, Any]) -> nn.Module:
    """`transformers`' BERT without its pooler, attention by PyTorch's fused function."""
    _declare_torchvision()
    from transformers import BertConfig, BertModel

    network = BertModel(BertConfig(**reader, attn_implementation="sdpa"), add_pooling_layer=False)
    return _filled(network, weights.revert({"params": params}, bert.RULES)).train()


def _filled(network: nn.Module, tensors: Mapping[str, np.ndarray]) -> nn.Module:
    """The network with these tensors, in the shapes that it has, as all its parameters.

    Raises:
      KeyError: the network has others.
    """
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    wanted = {name for name in shapes if not _BUFFERS.search(name)}
    if wanted != tensors.keys():
        raise KeyError(f"of one side alone: {sorted(wanted ^ tensors.keys())}")
    given = {name: tensor_of(value).reshape(shapes[name]) for name, value in tensors.items()}
    network.load_state_dict(given, strict=False)
    return network


def _timm() -> Any:
    _declare_torchvision()
    import timm

    return timm


@cache
def _declare_torchvision() -> torch.library.Library | None:
    """Makes torchvision importable beside a PyTorch that it was not built for, or does nothing.

    `timm` needs its Python only, and so does `transformers` where it is installed; but PyPI has its
    CUDA build alone, whose compiled half does not load beside the CPU build of PyTorch.
    """
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return None
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(f"{operator}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return library  # kept: with it go the definitions
    return None
