"""Starting weights in local files, as people publish and save them: a file is checked by its hash before it is read."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from stages.core import files


class CheckpointError(ValueError):
    """Weights do not fit the model that they are loaded into."""


def load_checkpoint(model: nn.Module, path: Path, sha256: str) -> None:
    """Load starting weights by name, or by order where names differ and all shapes agree.

    Published Once-for-All weights name their tensors otherwise than timm, in the same order. A classifier of another
    width (the last two tensors) keeps its random weights.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: another hash, or another architecture; the message lists the first keys that differ.
    """
    verify(path, sha256)
    if path.suffix == ".safetensors":
        given = load_file(path)
    else:
        given = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    if given.keys() != own.keys() and len(given) == len(own):
        given = dict(zip(own, given.values(), strict=True))
    head = list(own)[-2:]
    wrong = sorted(given.keys() ^ own.keys())
    wrong += [
        f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}"
        for key in own
        if key in given and given[key].shape != own[key].shape and key not in head
    ]
    if wrong:
        raise CheckpointError(f"{path} is of another architecture: {len(wrong)} keys differ: {', '.join(wrong[:8])}")
    model.load_state_dict({key: value for key, value in given.items() if value.shape == own[key].shape}, strict=False)


def verify(path: Path, sha256: str) -> None:
    """Check that a file that params.yaml names is there and is the recorded one.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: another hash.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: put it there, or set checkpoint to null in params.yaml")
    found = files.sha256(path)
    if found != sha256:
        raise CheckpointError(f"{path} has sha256 {found}, params.yaml records {sha256}: it is another file")
