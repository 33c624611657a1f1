"""Starting weights in local files, as people publish and save them: a file is checked by its hash before it is read.

What the file's first bytes say decides how it is read, not its name. A pickle is never run: of a PyTorch file, tensors
and plain values are read, and what needs code is refused.
"""

import argparse
import pickle
import re
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from stages.core import files

Weights = dict[str, Tensor]

# Entries that hold the weights of what trainers save, the averaged ones first, as timm takes them.
WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model_state_dict", "model", "net", "module")
COUNTER = "num_batches_tracked"  # of batch norm; files of torch < 0.4.1 lack it, and no result depends on it
# Parts that DataParallel, torch.compile, FSDP and activation checkpoints put into names, at any depth.
WRAPPED = re.compile(r"(?<![^.])(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # `norm.1` of torch < 0.4 is `norm1`
NUMBER = re.compile(r"\d+")
SHOWN = 8  # names in a message
ALONE = "save the state_dict() of the model alone"
SAFETENSORS = slice(8, 9), b"{"  # after the header's length, its JSON
SCALAR = np.float64(0).__reduce__()[0]  # makes a NumPy number of its bytes
# Plain values that trainers save beside weights, and that run no code when they are read: options, NumPy's numbers.
PLAIN: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    *((SCALAR, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")),
]
# What torch and its unpickler raise on bytes that they cannot read.
UNREADABLE = (AssertionError, AttributeError, EOFError, LookupError, MemoryError, OverflowError, RuntimeError,
              TypeError, ValueError, struct.error)  # fmt: skip


class CheckpointError(ValueError):
    """Weights do not fit the model that they are loaded into, or a file holds none."""


def load_checkpoint(model: nn.Module, path: Path, sha256: str) -> None:
    """Load starting weights by name, or by order where no name matches and shapes and numbers in names agree.

    Published Once-for-All weights name their tensors otherwise than timm, in the same order. Wrappers and prefixes of
    names are taken off. A classifier that the file lacks, or has in another form, keeps its random weights. What was
    not plain loading by name is printed.

    Args:
        model: of timm.
        path: a file of PyTorch or safetensors.
        sha256: as params.yaml records it.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: another hash, a file that holds no weights or unusable ones, or another architecture; the
            message lists the first keys that differ.
    """
    verify(path, sha256)
    own, heads = model.state_dict(), _classifiers(model)
    given, notes = _unwrapped(_read(path), path)
    prefix = _prefix(given, _body(own, heads), path)
    pick = _by_order if prefix is None else partial(_by_name, prefix=prefix)
    found, more = pick(given, own, heads, path)
    found, of_head = _with_whole_head(found, own, heads)
    _require_fit(found, own, path)
    model.load_state_dict(found, strict=False)
    if said := [*notes, *more, *of_head]:
        print(f"{path}: {'; '.join(said)}")


def _classifiers(model: Any) -> list[str]:
    """The beginnings of the names of a timm model's classifier's tensors, `fc.` for instance."""
    head = model.get_classifier()
    parts = head if isinstance(head, tuple) else (head,)
    return [f"{name}." for name, module in model.named_modules() if any(module is part for part in parts)]


def _is_of(name: str, beginnings: Iterable[str]) -> bool:
    return name.startswith(tuple(beginnings))


def _listed(names: Iterable[str]) -> str:
    """The first of some names, and how many there are more."""
    every = list(names)
    return ", ".join(every[:SHOWN]) + (f" and {len(every) - SHOWN} more" if len(every) > SHOWN else "")


def _read(path: Path) -> Any:
    """What a file holds.

    Raises:
        CheckpointError: it is empty, cut short, of no known kind, or holds more than tensors and plain values.
    """
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise CheckpointError(f"{path} is empty: fetch it again")
    place, mark = SAFETENSORS
    if start[place] == mark:
        try:
            return load_file(path)
        except (SafetensorError, *UNREADABLE) as error:
            raise CheckpointError(f"{path} is a damaged safetensors file ({error}): fetch it again") from error
    if _is_torchscript(path):
        raise CheckpointError(
            f"{path} is a TorchScript program, which holds code: where it was trained, save the model's state_dict() "
            "alone, as safetensors"
        )
    try:
        # by path, torch goes by its ending; what it warns of is refused later
        with torch.serialization.safe_globals(PLAIN), path.open("rb") as file, warnings.catch_warnings(action="ignore"):
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if code := _code_in(path, str(error)):
            raise CheckpointError(
                f"{path} holds pickled objects ({code}) and not tensors alone; they are not read, since that runs code "
                "of whoever made the file: where it was trained, save the model's state_dict() alone, as safetensors"
            ) from error
        raise CheckpointError(_no_weights(path)) from error
    except UNREADABLE as error:
        raise CheckpointError(_no_weights(path)) from error


def _no_weights(path: Path) -> str:
    return f"{path} is no file of PyTorch or safetensors, or a damaged one: fetch it again"


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, *UNREADABLE):
        return False


def _code_in(path: Path, message: str) -> str:
    """The classes and functions that a pickle names and that are not read; none of bytes that are no pickle."""
    try:
        with torch.serialization.safe_globals(PLAIN), path.open("rb") as file:
            found = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (pickle.UnpicklingError, *UNREADABLE):  # torch's form before 1.6, or no pickle
        found = re.findall(r"GLOBAL ([\w.]+)", message)
    return _listed(sorted(found))


def _unwrapped(held: Any, path: Path) -> tuple[Weights, list[str]]:
    """The tensors by name among what a file holds, and what is to be said of where they were.

    Raises:
        CheckpointError: there are none, or several sets of them, or a value beside them is no tensor.
    """
    notes: list[str] = []
    while isinstance(held, Mapping) and (sets := [key for key, value in held.items() if _holds_tensors(value)]):
        chosen = next((key for key in WRAPPERS if key in sets), sets[0])
        if chosen not in WRAPPERS and len(sets) > 1:
            raise CheckpointError(f"{path} holds several sets of weights ({_listed(sets)}): {ALONE}")
        if others := [key for key in sets if key != chosen and key in WRAPPERS]:
            notes.append(f"its {chosen} was taken, not its {_listed(others)}")
        held = held[chosen]
    if not isinstance(held, Mapping):
        raise CheckpointError(f"{path} holds a {type(held).__name__} and no tensors by name: {ALONE}")
    if not held:
        raise CheckpointError(f"{path} holds no tensors: {ALONE}")
    if odd := [str(name) for name, value in held.items() if not isinstance(name, str) or not isinstance(value, Tensor)]:
        raise CheckpointError(f"{path} has {len(odd)} values that are no tensors by name ({_listed(odd)}): {ALONE}")
    given = {OLD_DENSENET.sub(r"\1\2.", WRAPPED.sub("", name)): value for name, value in held.items()}
    if len(given) < len(held):
        raise CheckpointError(
            f"{path} holds a tensor under several names, with and without `module.` or the like: {ALONE}"
        )
    return given, notes


def _holds_tensors(value: Any) -> bool:
    """Whether a value is a mapping in which names stand for tensors, or for such mappings."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        return False
    return any(isinstance(inner, Tensor) or _holds_tensors(inner) for inner in value.values())


def _body(own: Weights, heads: list[str]) -> list[str]:
    """The names that a file must have: all but the classifier's and the counters of batch norm."""
    return [name for name in own if not _is_of(name, heads) and not name.endswith(COUNTER)]


def _prefix(given: Weights, body: list[str], path: Path) -> str | None:
    """What stands before the model's names in a file's, `module.` or nothing for instance; None if no name matches.

    Raises:
        CheckpointError: the whole model is there under several.
    """
    known, counts = set(body), Counter[str]()
    for name in given:
        places = (0, *(dot.end() for dot in re.finditer(r"\.", name)))
        counts.update(name[:place] for place in places if name[place:] in known)
    whole = [prefix for prefix, count in counts.items() if count == len(body)]
    if len(whole) > 1:
        raise CheckpointError(
            f"{path} holds several sets of weights (names begin with {_listed(map(repr, whole))}): {ALONE}"
        )
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default=None)


def _by_name(given: Weights, own: Weights, heads: list[str], path: Path, prefix: str) -> tuple[Weights, list[str]]:
    """The model's tensors among a file's, and what is to be said of the others.

    What is a single number, or stands outside the prefix, in the classifier's place or, where the model's classifier
    lacks, beside all of the model's parts, is left out; what else the model has not, a longer network has.

    Raises:
        CheckpointError: some lack, or the file's network has more.
    """
    inside = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    found = {name: value for name, value in inside.items() if name in own}
    others = [name for name, v in inside.items() if name not in own and not _is_of(name, heads) and v.numel() > 1]
    parts = {name.partition(".")[0] for name in own}
    lacks_head = not any(_is_of(name, heads) for name in found)
    wrong = [name for name in _body(own, heads) if name not in found]
    wrong += [name for name in others if name.partition(".")[0] in parts or not lacks_head]
    if wrong:
        raise CheckpointError(_differs(path, sorted(wrong)))
    left = [name for name in given if not name.startswith(prefix) or name.removeprefix(prefix) not in found]
    return found, [f"left out: {_listed(left)}"] if left else []


def _by_order(given: Weights, own: Weights, heads: list[str], path: Path) -> tuple[Weights, list[str]]:
    """A file's tensors under the model's names, in order, and that it was so.

    Raises:
        CheckpointError: number or shapes differ, or its names show that they are in another order than the model's.
    """
    names = list(own) if len(given) == len(own) else [name for name in own if not name.endswith(COUNTER)]
    if len(given) != len(names):
        raise CheckpointError(
            f"{path} is of another architecture: no name of its {len(given)} tensors ({_listed(given)}) is one of the "
            f"model's {len(names)} ({_listed(names)})"
        )
    found = dict(zip(names, given.values(), strict=True))
    is_head = [_is_of(name, heads) for name in names]
    if wrong := [
        _shapes(name, found[name], own[name])
        for name, of_head in zip(names, is_head, strict=True)
        if found[name].shape[of_head:] != own[name].shape[of_head:]
    ]:
        raise CheckpointError(_differs(path, wrong))
    if doubts := list(_doubts(list(given), names)):
        raise CheckpointError(
            f"{path} names its tensors otherwise than the model, and not in the model's order ({_listed(doubts)}), so "
            "that layers of one shape could be exchanged: save them under the model's names"
        )
    return found, [f"no name is the model's, loaded by order ({next(iter(given))} as {names[0]}, and so on)"]


def _doubts(given: list[str], names: list[str]) -> Iterator[str]:
    """Where names of a file are not in the order of the model's: their numbers fall, or a kind stands for two.

    Args:
        given: the file's names.
        names: the model's, as many.
    """
    before: dict[str, str] = {}
    kinds: dict[str, str] = {}
    for theirs, ours in zip(given, names, strict=True):
        form, kind, our_kind = NUMBER.sub("#", theirs), theirs.rpartition(".")[2], ours.rpartition(".")[2]
        if _numbers(theirs) < _numbers(before.get(form, "")):
            yield f"{theirs} after {before[form]}"
        before[form] = theirs
        if not NUMBER.search(kind) and kinds.setdefault(kind, our_kind) != our_kind:
            yield f"{theirs} for {ours}"


def _numbers(name: str) -> list[int]:
    return [int(number) for number in NUMBER.findall(name)]


def _with_whole_head(found: Weights, own: Weights, heads: list[str]) -> tuple[Weights, list[str]]:
    """The tensors without those of a classifier that is not the model's, and what is to be said of it."""
    wanted = {name: value.shape for name, value in own.items() if _is_of(name, heads)}
    there = {name: found[name].shape for name in wanted if name in found}
    if there == wanted:
        return found, []
    kept = {name: value for name, value in found.items() if name not in wanted}
    given = _listed(_shapes(name, found[name], own[name]) for name in there)
    return kept, [f"the classifier is made anew: the file has {given or 'none under ' + ', '.join(wanted)}"]


def _require_fit(found: Weights, own: Weights, path: Path) -> None:
    """Check that tensors have the model's shapes and kinds, and finite values; another precision is converted.

    Raises:
        CheckpointError: with the first that have not.
    """
    if wrong := [_shapes(name, value, own[name]) for name, value in found.items() if value.shape != own[name].shape]:
        raise CheckpointError(_differs(path, wrong))
    odd = [
        f"{name} {str(value.dtype).removeprefix('torch.')}"
        for name, value in found.items()
        if value.is_floating_point() != own[name].is_floating_point() or value.layout != torch.strided or value.is_meta
    ]
    if odd:
        raise CheckpointError(
            f"{path} has {len(odd)} tensors that are quantized, sparse or without values ({_listed(odd)}): save "
            "them in float32"
        )
    if lost := [name for name, value in found.items() if not value.to(own[name].dtype).isfinite().all()]:
        raise CheckpointError(
            f"{path} has NaN or infinite values in {len(lost)} tensors ({_listed(lost)}): its training diverged, "
            "take an earlier checkpoint"
        )


def _shapes(name: str, given: Tensor, own: Tensor) -> str:
    return f"{name} {tuple(given.shape)} for {tuple(own.shape)}"


def _differs(path: Path, wrong: list[str]) -> str:
    return f"{path} is of another architecture: {len(wrong)} keys differ: {_listed(wrong)}"


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
