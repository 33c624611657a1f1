"""Models: built by the name of their file, saved, loaded and run."""

import ctypes
import inspect
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import load, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from stages.core import files, plugins
from stages.nets import weights
from stages.sources.images import Images

MEAN = (0.485, 0.456, 0.406)  # ImageNet's, which pretrained weights expect
STD = (0.229, 0.224, 0.225)
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def fix(threads: int) -> torch.device:
    """Make this process reproducible and choose its device: the thread count changes float results on CPUs."""
    torch.set_num_threads(threads)
    threadpool_limits(threads, "blas")
    keep_freed_memory()
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs 8% of a step
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> None:
    """Let glibc keep what a training step frees for the next one, which would else fault in each page again."""
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)
        set_option(M_MMAP_MAX, 0)


def to_input(films: np.ndarray, device: torch.device | None = None) -> Tensor:
    """uint8 films (batch, size_px, size_px) as normalised float input (batch, 3, size_px, size_px)."""
    grey = torch.from_numpy(films).to(device or "cpu").unsqueeze(1).float().div(255)
    mean, std = (torch.tensor(values, device=grey.device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((grey - mean) / std).contiguous(memory_format=torch.channels_last)


class Ensemble(nn.Module):
    """Several nets as one: the mean of their logits, each over its temperature, mean_m z_m / T_m.

    Temperatures are a buffer, so that they are saved with the weights: Guo et al., "On Calibration of Modern Neural
    Networks", arXiv 1706.04599.
    """

    temperatures: Tensor

    def __init__(self, nets: list[nn.Module]) -> None:
        """Take nets with the same outputs; every temperature is 1."""
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.register_buffer("temperatures", torch.ones(len(nets)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, finding) of images (batch, 3, size_px, size_px)."""
        scaled = [net(images) / temperature for net, temperature in zip(self.nets, self.temperatures, strict=True)]
        return torch.stack(scaled).mean(dim=0)


def build_model(
    architecture: str, outputs: int, size_px: int, start: Any = None, seed: int = 0, member: int | None = None
) -> nn.Module:
    """A timm model by the name of its file under stages/models, or an ensemble of several.

    Args:
        architecture: the file's name.
        outputs: number of logits.
        size_px: side of the input; handed to constructors that take one (Swin, Visformer).
        start: the architecture's entry of params.yaml (pretrained, checkpoint); None for random weights.
        seed: of the random weights; member n of an ensemble has seed + n.
        member: of an ensemble, build this net alone.

    Raises:
        weights.CheckpointError: the checkpoint does not fit, or its hash is not the recorded one.
        FileNotFoundError: no checkpoint there, or ImageNet weights that cannot be fetched.
    """
    plugin = plugins.load("models", architecture)
    if hasattr(plugin, "MEMBERS") and member is None:
        places = range(len(plugin.MEMBERS))
        return Ensemble([build_model(architecture, outputs, size_px, start, seed + place, place) for place in places])
    name = plugin.ID if member is None else plugin.MEMBERS[member]
    extra: dict[str, Any] = {"img_size": size_px} if _takes_size(name) else {}
    pretrained = bool(start and start.pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=outputs, **extra)
        except (OSError, RuntimeError) as error:
            if not pretrained:
                raise
            raise FileNotFoundError(
                f"ImageNet weights of {name} could not be fetched ({error}): connect once so that timm can cache them, "
                f"or give a local file as checkpoint (params.yaml: {architecture}.checkpoint)"
            ) from error
    if start and start.checkpoint:
        weights.load_checkpoint(model, Path(start.checkpoint), start.checkpoint_sha256)
    return model.to(memory_format=torch.channels_last)


def _takes_size(name: str) -> bool:
    """Whether a timm constructor takes `img_size`; DenseNet and ResNet raise TypeError on it."""
    with torch.device("meta"):
        return "img_size" in inspect.signature(type(timm.create_model(name))).parameters


def write(model: nn.Module, about: dict[str, Any], folder: Path) -> None:
    """Write `weights.safetensors` and `model.json`, which `load_model` reads."""
    folder.mkdir(parents=True)
    save_file(
        {key: value.contiguous().cpu() for key, value in model.state_dict().items()}, folder / "weights.safetensors"
    )
    files.write_json(about, folder / "model.json")


def load_model(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """A trained model in eval mode and what is known of it (`model.json`: architecture, findings, size_px, ...)."""
    about = files.read_json(folder / "model.json")
    model = build_model(about["architecture"], len(about["findings"]), about["size_px"])
    model.load_state_dict(load((folder / "weights.safetensors").read_bytes()))
    return model.eval(), about


def logits(model: nn.Module, films: Iterable[np.ndarray], device: torch.device) -> np.ndarray:
    """Outputs of a model in eval mode for batches of uint8 films, float32 (films, outputs)."""
    with torch.inference_mode():
        return np.concatenate([model(to_input(batch, device)).float().cpu().numpy() for batch in films])


def as_grid(features: Tensor, channels: int, name: str, model: nn.Module) -> Tensor:
    """A layer's output as (batch, channel, height, width): it comes so, or channels last (Swin), or as tokens (ViT).

    Raises:
        ValueError: the layer has no grid.
    """
    if features.ndim == 4 and features.shape[1] == channels:
        return features
    if features.ndim == 4 and features.shape[3] == channels:
        return features.permute(0, 3, 1, 2)
    if features.ndim == 3 and features.shape[2] == channels:
        patches = features[:, int(getattr(model, "num_prefix_tokens", 0)) :]
        side = round(patches.shape[1] ** 0.5)
        if side * side == patches.shape[1]:
            return patches.transpose(1, 2).reshape(len(patches), channels, side, side)
    raise ValueError(f"class maps need a grid of {channels} channels, got {tuple(features.shape)} from layer {name}")


def in_batches(films: Images, size: int) -> Iterator[np.ndarray]:
    """All films in order, `size` at a time, uint8 (size, size_px, size_px)."""
    for start in range(0, len(films), size):
        yield films.take(range(start, min(start + size, len(films))))
