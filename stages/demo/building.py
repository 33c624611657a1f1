"""The page's files: index.html with what it loads beside it, for any static server, and one_file.html with all in it.

The runtime is onnxruntime-web, pinned by version and by the SHA-512 that npm states; what the page loads is checked by
the browser (subresource integrity). The page's policy lets index.html ask its own origin for files and nothing else,
and one_file.html nobody for anything.
"""

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pooch
import requests

from stages.core import files
from stages.device.running import Exported
from stages.films import plausibility
from stages.pages import rendering

RUNTIME, VERSION = "onnxruntime-web", "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512
SCRIPT, BINARY = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
CACHE = Path("data/runtime")
HERE = Path(__file__).parent


class DemoError(RuntimeError):
    """The page cannot be built; the message says what to do."""


def registry() -> str:
    """Where npm fetches from: what its variable or its settings name.

    Raises:
        DemoError: there is neither npm nor the variable.
    """
    named = os.environ.get("npm_config_registry")  # noqa: SIM112 - npm's own
    if not named and shutil.which("npm"):
        asked = subprocess.run(["npm", "config", "get", "registry"], capture_output=True, text=True, check=False)
        named = asked.stdout.strip()
    if not named or not named.startswith("http"):
        raise DemoError(
            f"{RUNTIME} comes from npm's registry, and nothing names one: install npm, or set npm_config_registry"
        )
    return named.rstrip("/")


def runtime(cache: Path = CACHE) -> dict[str, bytes]:
    """The two files of the runtime that the page needs, fetched once.

    Raises:
        DemoError: they cannot be fetched, or are not what was pinned.
    """
    name = f"{RUNTIME}-{VERSION}.tgz"
    pooch.get_logger().setLevel("WARNING")  # it tells whole addresses
    try:
        path = pooch.retrieve(
            f"{registry()}/{RUNTIME}/-/{name}",
            known_hash=f"sha512:{base64.b64decode(INTEGRITY).hex()}",
            fname=name,
            path=cache,
        )
    except (requests.RequestException, ValueError, OSError) as error:
        raise DemoError(
            f"{RUNTIME} {VERSION} could not be fetched from npm's registry ({type(error).__name__}): set "
            f"npm_config_registry to one that you reach, or put {name} (npm pack {RUNTIME}@{VERSION}) into {cache}"
        ) from error
    with tarfile.open(path) as archive:
        return {wanted: _member(archive, f"package/dist/{wanted}") for wanted in (SCRIPT, BINARY)}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise DemoError(f"{RUNTIME} {VERSION} has no {name}")
    return file.read()


def smallest(exported: Exported) -> str:
    """The file of the model that the page uses: with class maps if there are any, and of fewest bytes."""
    listed = exported.about["files"]
    known = (
        exported.about["map"]["files"] if exported.about["map"] else [one for one in listed if one.endswith(".onnx")]
    )
    return str(min(known, key=lambda name: listed[name]["bytes"]))


def integrity(content: bytes) -> str:
    """As a browser checks it."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


def limits(exported: Exported) -> dict[str, Any]:
    """What the page refuses a picture for, as `cxr-predict` does."""
    return {
        "smallestPx": exported.about["size_px"],
        "maxPixels": exported.about["ingest"]["max_pixels"],
        "minRange": exported.about["ingest"]["min_range"],
        "longest": plausibility.LONGEST,
        "tint": plausibility.TINT,
        "coloured": plausibility.COLOURED,
        "nearWhite": plausibility.NEAR_WHITE,
        "mostly": plausibility.MOSTLY,
        "alike": plausibility.ALIKE,
    }


def build(model: Path, pages: Path, cache: Path = CACHE) -> dict[str, int]:
    """Write the pages and what they load.

    Args:
        model: the exported folder.
        pages: where.
        cache: where the runtime is kept.

    Returns:
        File -> bytes.

    Raises:
        DemoError: the runtime cannot be had.
        FolderError: the folder of the model is not one, or was changed.
    """
    exported = Exported.of(model)
    name = smallest(exported)
    exported.session(name, 1)  # as listed
    samples = sorted(one for one in exported.about["files"] if one.endswith(".png"))
    parts = runtime(cache) | {name: (model / name).read_bytes()}
    parts |= {Path(sample).name: (model / sample).read_bytes() for sample in samples}
    page = {
        "model": name,
        "sha256": exported.require(name),
        "script": SCRIPT,
        "binary": BINARY,
        "samples": [Path(sample).name for sample in samples],
        "about": {key: exported.about[key] for key in ("findings", "populations", "map", "size_px")},
        "integrity": {part: integrity(content) for part, content in parts.items()},
        "limits": limits(exported),
    }
    context = {
        "page": page,
        "use": exported.about["use"],
        "architecture": exported.about["architecture"],
        "samples": exported.about["samples"],
        "bytes": {part: len(content) for part, content in parts.items()},
        "sha256": exported.require(name),
        "runtime": f"{RUNTIME} {VERSION}",
        "script": (HERE / "page.js").read_text(encoding="utf-8"),
    }
    packed = {part: base64.b64encode(gzip.compress(content, mtime=0)).decode() for part, content in parts.items()}
    template = (HERE / "page.html.j2").read_text(encoding="utf-8")
    with files.whole(pages) as folder:
        folder.mkdir()
        for part, content in parts.items():
            (folder / part).write_bytes(content)
        for file, inside in (("index.html", {}), ("one_file.html", packed)):
            text = rendering.render(template, context | {"parts": inside}, is_html=True)
            (folder / file).write_text(text, encoding="utf-8")
    return {path.name: path.stat().st_size for path in sorted(pages.iterdir())}
