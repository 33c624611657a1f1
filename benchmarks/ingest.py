"""Films of 1024 x 1024 out of files, beside bare OpenCV and torchxrayvision's reading and resizing."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import cv2
import numpy as np
from ruamel.yaml import YAML

from benchmarks import measure
from stages import ingest
from stages.core import files, params

SIDE, SIZE_PX = 1024, 256
FILMS = 40  # different ones; more names link to them
BESIDE_OPENCV, BESIDE_TXRV = 2000, 600  # films a round: with few, reading params and hashing code would be timed
NOISE = 1.3  # grey levels; gives PNGs of about the size of NIH's, 390 kB
THREADS = 2
FEW, MANY, PEAKS = 500, 5000, 5  # a single peak varies by a tenth
DATASET = "chestxray14"


def film(seed: int) -> bytes:
    """A smooth image with noise, as a PNG file."""
    rng = np.random.default_rng(seed)
    smooth = cv2.resize(rng.integers(0, 256, (12, 12), dtype=np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    noisy = smooth + rng.normal(0, NOISE, smooth.shape)
    return cv2.imencode(".png", np.clip(noisy, 0, 255).astype(np.uint8))[1].tobytes()


@contextmanager
def project(count: int, workers: int) -> Iterator[list[Path]]:
    """A folder to run ingest in, with so many films pinned in `root`; their paths."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        values = params.read()
        values["ingest"]["size_px"], values["workers"] = SIZE_PX, workers
        with (folder / "params.yaml").open("w") as file:
            YAML(typ="safe").dump(values, file)
        (folder / "root").mkdir()
        paths = [folder / f"root/{number + 1:08d}_000.png" for number in range(count)]
        for path in paths[:FILMS]:
            path.write_bytes(film(int(path.name[:8])))
        for number, path in enumerate(paths[FILMS:]):
            os.link(paths[number % FILMS], path)
        pinned = [{"name": path.name, "bytes": path.stat().st_size, "sha256": path.name} for path in paths]
        files.write_json({"files": pinned, "unused": {}}, folder / f"data/raw/{DATASET}/manifest.json")
        before = Path.cwd()
        os.chdir(folder)
        try:
            yield paths
        finally:
            os.chdir(before)


def ours() -> None:
    """Run the stage, from files to shards."""
    shutil.rmtree("data/images", ignore_errors=True)
    ingest.main(["--dataset", DATASET, "--root", "root"])


def bare(path: Path) -> None:
    """What OpenCV needs for one film."""
    image: Any = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    cv2.resize(image, (SIZE_PX, SIZE_PX), interpolation=cv2.INTER_AREA)


def opencv(paths: list[Path], threads: int) -> None:
    """Decode and resize all films, and keep nothing."""
    cv2.setNumThreads(1)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(bare, paths))


def torchxrayvision(paths: list[Path]) -> None:
    """Read, normalize and resize all films as torchxrayvision's NIH_Dataset does."""
    from skimage.io import imread
    from torchxrayvision.datasets import XRayResizer, normalize

    resize = XRayResizer(SIZE_PX)
    for path in paths:
        resize(normalize(imread(path), maxval=255, reshape=True))


def run() -> list[measure.Line]:
    """The lines on ingest."""
    with project(BESIDE_OPENCV, THREADS) as paths:
        size = paths[0].stat().st_size / 1e3
        beside = measure.in_turn(ours, partial(opencv, paths, THREADS), count=3)
    with project(BESIDE_TXRV, 1) as paths:
        alone = measure.in_turn(ours, partial(torchxrayvision, paths), count=3)
    peaks = [[measure.printed("benchmarks.ingest", str(count))[0] for count in (FEW, MANY)] for _ in range(PEAKS)]
    few, many = (mean(side) for side in zip(*peaks, strict=True))
    about = f"1024 x 1024 PNGs of {size:.0f} kB to {SIZE_PX} px"
    return [
        measure.compare(f"ingest {about}, {THREADS} threads; bare OpenCV", beside, "films", BESIDE_OPENCV, 0.85, True),
        measure.compare(f"ingest {about}, 1 thread; torchxrayvision's reading", alone, "films", BESIDE_TXRV, 4, True),
        measure.Line(f"peak memory of ingest, {MANY:,} films to {FEW:,}", f"{many:.0f} MB", f"{few:.0f} MB", many / few,
                     limit=1.1),
    ]  # fmt: skip


if __name__ == "__main__":
    with project(int(sys.argv[1]), THREADS):
        ours()
    print(measure.own_peak_mb())
