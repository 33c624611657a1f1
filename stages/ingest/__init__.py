"""Source images to 8-bit grey squares in a few large shards, straight from the archives.

Reads the manifest and the image files that it pins. Writes `data/images/<dataset>/` (index and uint8 shards, in order
of the image's key) and `reports/labels/<dataset>.images.json` (what was read, rejected and why, which images are
identical or nearly so, which use little of their range, how many are in another format than the owner's, what else
looked like an image). Stops on a damaged archive, an archive that holds archives in place of images, an image that lies
in two places, and when more images are rejected than params allow. A run that is killed goes on after the last finished
chunk. Decoding runs in threads, or on a Dask cluster that params name: the main process streams the archives and sends
it chunks.
"""

import hashlib
import itertools
import json
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import joblib
import numpy as np
import pandas as pd
import PIL
import pydicom
from tqdm import tqdm

from stages.core import arguments, files, params, plugins
from stages.films.decoding import FULL_BITS, Stated, largest_bytes, to_square
from stages.films.headers import ImageError
from stages.ingest import duplicates
from stages.ingest.beside import Met
from stages.learning import checkpoints
from stages.sources import archives, raw

CHUNK_IMAGES = 64  # a task's images; a killed run repeats at most these
LEVELS = 255  # between black and white
LITTLE = 1 / 8  # of them: a film that is kept though its square spans less is listed


@dataclass(frozen=True)
class Source:
    """An image as it lies in the root; `content` is None when it was not read, for the reason given."""

    image: str
    file: str
    content: bytes | None
    stated: Stated
    reason: str = ""


@dataclass(frozen=True)
class Record:
    """What became of an image.

    Attributes:
        sha256: of its square's pixels; empty if it was rejected, like the two after it.
        fingerprint: of its square.
        levels: between its square's darkest and brightest pixel.
        reason: for which it was rejected.
    """

    image: str
    source: str
    sha256: str
    fingerprint: str
    levels: int
    reason: str


@dataclass(frozen=True)
class Limits:
    """What `to_square` holds images to, by `ingest` of params.yaml."""

    size_px: int
    max_pixels: int
    min_range: float


def decode_chunk(chunk: list[Source], limits: Limits) -> tuple[list[Record], bytes]:
    """Records of some images, and the pixels of those that can be used, one after the other."""
    cv2.setNumThreads(1)  # joblib has the cores already
    records, squares = [], []
    for source in chunk:
        try:
            if source.content is None:
                raise ImageError(source.reason)
            square = to_square(source.content, source.stated, *astuple(limits))
        except ImageError as error:
            records.append(Record(source.image, source.file, "", "", 0, str(error)))
        else:
            content = square.tobytes()
            levels = int(square.max()) - int(square.min())
            seen = (hashlib.sha256(content).hexdigest(), duplicates.fingerprint(square), levels)
            records.append(Record(source.image, source.file, *seen, ""))
            squares.append(content)
    return records, b"".join(squares)


@dataclass(frozen=True)
class Group:
    """Files that are decoded together: an archive, or all loose images.

    Attributes:
        key: a hash of their names and contents; finished chunks are kept under it.
        names: of the files.
    """

    key: str
    names: tuple[str, ...]


def groups(root: Path, manifest: Any, plugin: ModuleType) -> list[Group]:
    """The manifest's files that hold images: each archive alone, and the loose image files together."""
    pinned = manifest["files"]
    loose = [file for file in pinned if raw.image_key(plugin, file["name"]) is not None]
    packed = [
        [file]
        for file in pinned
        if raw.image_key(plugin, file["name"]) is None and archives.is_archive(root / file["name"])
    ]
    return [
        Group(hashlib.sha256(json.dumps(of_group).encode()).hexdigest()[:16], tuple(file["name"] for file in of_group))
        for of_group in [*packed, loose]
        if of_group
    ]


class Reader:
    """The images of a root.

    Attributes:
        met: by the latest `read`.
    """

    def __init__(self, root: Path, plugin: ModuleType, stated: dict[str, Stated], max_pixels: int) -> None:
        self.root = root
        self.plugin = plugin
        self.stated = stated
        self.met = Met()
        self.max_bytes = largest_bytes(max_pixels)

    def read(self, names: Sequence[str], skip: int) -> Iterator[Source]:
        """The images in some files of the manifest, but for the first `skip`, which are not even unpacked."""
        passed = 0
        self.met = Met()
        for name in names:
            for member in self._members(name):
                image = raw.image_key(self.plugin, member.name)
                self.met.note(member.name, image)
                if image is None:
                    continue
                passed += 1
                if passed > skip:
                    yield self._source(image, name, member)

    def _members(self, name: str) -> Iterator[archives.Member]:
        path = self.root / name
        if raw.image_key(self.plugin, name) is None:
            yield from archives.members(path)
        else:
            yield archives.Member(name, path.stat().st_size, path.read_bytes)

    def _source(self, image: str, file: str, member: archives.Member) -> Source:
        stated = self.stated.get(image, Stated())
        if member.size_bytes > self.max_bytes:  # a bomb: it is not read
            return Source(image, file, None, stated, "more bytes than ingest.max_pixels can have")
        return Source(image, file, member.read(), stated)


def in_chunks(sources: Iterator[Source]) -> Iterator[list[Source] | Exception]:
    """Lists of CHUNK_IMAGES sources; a fault of reading comes last, as a value: what was read before it is kept."""
    chunk: list[Source] = []
    try:
        for source in sources:
            chunk.append(source)
            if len(chunk) == CHUNK_IMAGES:
                yield chunk
                chunk = []
    except Exception as error:  # noqa: BLE001 - `decode_group` raises it
        yield error  # the last, incomplete chunk is dropped: its end is not known
        return
    if chunk:
        yield chunk


def decode_or_raise(chunk: list[Source] | Exception, limits: Limits) -> tuple[list[Record], bytes] | Exception:
    """`decode_chunk`, handing a fault of reading on."""
    return chunk if isinstance(chunk, Exception) else decode_chunk(chunk, limits)


def decode_group(kept: Path, group: Group, reader: Reader, settings: Any, workers: int, bar: Any) -> None:
    """Decode a group into numbered chunks below `kept`, going on after those that are there.

    Raises:
        ArchiveError: the archive is damaged, and the chunks before the damage stay; or it holds archives and no image.
    """
    complete = kept / f"{group.key}.complete"
    there = chunks(kept, group)
    before = sum(len(_records(path)) for path in there)
    bar.update(before)
    if before:
        print(f"{before} images of {group.names[0]} were read before", file=sys.stderr)
    if complete.exists():
        return
    limits = Limits(settings.size_px, settings.max_pixels, settings.min_range)
    failed = False
    sources = itertools.takewhile(lambda _: not failed, in_chunks(reader.read(group.names, skip=before)))
    tasks = (joblib.delayed(decode_or_raise)(chunk, limits) for chunk in sources)
    with workplace(settings.dask_scheduler):
        done = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator", pre_dispatch="2*n_jobs")(tasks)
        try:
            for place, result in enumerate(done, start=len(there)):
                if isinstance(result, Exception):
                    raise result
                records, pixels = result
                name = kept / f"{group.key}_{place:06d}"
                checkpoints.write(name.with_suffix(".u8"), pixels)
                found = json.dumps([asdict(record) for record in records])
                checkpoints.write(name.with_suffix(".json"), found.encode())
                bar.update(len(records))
        except BaseException:
            failed = True
            deque(done, maxlen=0)  # a thread that still decodes as the process ends would abort it
            raise
    if not chunks(kept, group):
        reader.met.require_no_archives(group.names[0])
    checkpoints.write(complete, json.dumps(asdict(reader.met)).encode())


@contextmanager
def workplace(scheduler: str | None) -> Iterator[None]:
    """Where joblib runs the tasks of the block: the Dask cluster at this address, or this process's threads.

    Raises:
        ConnectionError: nobody answers at the address.
        ImportError: Dask is not installed.
    """
    if scheduler is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError("ingest.dask_scheduler in params.yaml needs Dask: pip install dask distributed") from error
    try:
        client = Client(scheduler, set_as_default=False)  # type: ignore[no-untyped-call]  # Dask has no types
    except OSError as error:
        raise ConnectionError(
            f"no Dask scheduler answers at {scheduler} (params.yaml: ingest.dask_scheduler): start one with "
            "`dask scheduler` and `dask worker`, or set null to decode in this process"
        ) from error
    with client, joblib.parallel_config(backend="dask", client=client):
        yield


def chunks(kept: Path, group: Group) -> list[Path]:
    """The records of a group's finished chunks, in order."""
    return sorted(kept.glob(f"{group.key}_*.json"))


def _records(path: Path) -> list[Record]:
    return [Record(**values) for values in files.read_json(path)]


def gather(paths: list[Path]) -> pd.DataFrame:
    """All records of some chunks in order of the image, with the chunk and the place in it of each square.

    Raises:
        ValueError: an image lies in two places of the root.
    """
    rows = []
    for path in paths:
        place = 0
        for record in _records(path):
            rows.append((*asdict(record).values(), path.stem, place))
            place += not record.reason
    table = pd.DataFrame(rows, columns=[*Record.__annotations__, "chunk", "place"])
    table = table.sort_values("image", kind="stable").reset_index(drop=True)
    twice = table[table["image"].duplicated(keep=False)]
    if not twice.empty:
        first = twice[twice["image"] == twice["image"].iloc[0]]
        raise ValueError(
            f"{twice['image'].nunique()} images lie in two places, e.g. {first['image'].iloc[0]} in "
            f"{' and '.join(first['source'])}: leave one of them in the root, whatever its folder and format"
        )
    return table


def require_enough(table: pd.DataFrame, dataset: str, limit: float, others: list[str]) -> None:
    """Check that there are images, and few enough were rejected.

    Raises:
        ValueError: with the reasons, or the names that were found instead.
    """
    if table.empty:
        found = f"; its archives hold members of other names ({raw.few(others)})" if others else ""
        raise ValueError(f"{dataset} holds no image{found}: see data/README.md for the owners' layouts")
    rejected = table[table["reason"] != ""]
    if len(rejected) > limit * len(table):
        first = rejected.drop_duplicates("reason")
        listed = zip(first["reason"], first["image"], first["source"], strict=True)
        raise ValueError(
            f"{dataset}: {len(rejected)} of {len(table)} images are rejected, more than the share {limit:g} "
            f"(params.yaml: datasets.{dataset}.max_rejected_images): {rejected['reason'].value_counts().to_dict()}, "
            f"e.g. {'; '.join(f'{image} in {source}: {reason}' for reason, image, source in listed)}"
        )


def write_shards(table: pd.DataFrame, kept: Path, folder: Path, size_px: int, shard_images: int) -> None:
    """Write the squares of the accepted images in the table's order, a few at a time in memory, and their index."""
    folder.mkdir()
    accepted = table[table["reason"] == ""].reset_index(drop=True)
    number = np.arange(len(accepted))
    for shard, rows in accepted.groupby(number // shard_images):
        with (folder / f"shard_{shard:04d}.npy").open("wb") as file:
            shape = (len(rows), size_px, size_px)
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for chunk, place in zip(rows["chunk"], rows["place"], strict=True):
                with (kept / f"{chunk}.u8").open("rb") as squares:
                    squares.seek(place * size_px**2)
                    file.write(squares.read(size_px**2))
    index = accepted[["image", "sha256", "source"]]
    index.insert(1, "shard", number // shard_images)
    index.insert(2, "row", number % shard_images)
    files.write_table(index, folder / "index.parquet")


def stated_of(root: Path, manifest: Any, plugin: ModuleType, check_size: bool, max_table_mb: int) -> dict[str, Stated]:
    """What the tables say of each image file, for the images of which they say anything."""
    hooks = {name: getattr(plugin, name) for name in ("bit_depths", "sizes") if hasattr(plugin, name)}
    tables = raw.tables(root, manifest, plugin, max_table_mb) if hooks else {}
    said = {name: hook(tables) for name, hook in hooks.items()}
    bits, sizes = said.get("bit_depths", {}), said.get("sizes", {}) if check_size else {}
    return {image: Stated(bits.get(image, FULL_BITS), sizes.get(image)) for image in {**bits, **sizes}}


def summarize(table: pd.DataFrame, dataset: str, others: list[str], told: Any, max_bits: int) -> dict[str, Any]:
    """What was read, rejected and seen beside; which images are (nearly) the same, or use little of their range."""
    rejected = table[table["reason"] != ""]
    accepted = table[table["reason"] == ""]
    same = accepted[accepted["sha256"].duplicated(keep=False)].groupby("sha256", sort=False)["image"]
    distinct = accepted.drop_duplicates("sha256")
    names = distinct["image"].tolist()
    alike = duplicates.near(distinct["fingerprint"].tolist(), max_bits)
    return {
        "dataset": dataset,
        "read": len(table),
        "written": len(accepted),
        "rejected": rejected[["image", "source", "reason"]].to_dict("records"),
        "rejected_by_reason": {str(key): int(count) for key, count in rejected["reason"].value_counts().items()},
        "identical": sorted(images.tolist() for _, images in same),
        "near_duplicates": [[names[one], names[other]] for one, other in alike],
        "low_contrast": accepted.loc[accepted["levels"] < LITTLE * LEVELS, "image"].tolist(),
        "members_that_are_no_image": others,
        **told,
    }


def main(argv: list[str] | None = None) -> None:
    """Parse, decode, gather, write."""
    args = arguments.parser(__doc__, "dataset", "root").parse_args(argv)
    settings, workers, max_table_mb, limit = params.load(
        "ingest", "workers", "max_table_mb", f"datasets.{args.dataset}.max_rejected_images"
    )
    plugin = plugins.load("datasets", args.dataset)
    manifest = files.read_json(files.input(f"data/raw/{args.dataset}") / "manifest.json")
    root = files.input(args.root)
    raw.require_pinned(root, manifest)
    stated = stated_of(root, manifest, plugin, settings.check_size, max_table_mb)
    reader = Reader(root, plugin, stated, settings.max_pixels)
    todo = groups(root, manifest, plugin)
    facts: dict[str, Any] = {"chunk": CHUNK_IMAGES} | {name: getattr(settings, name) for name in Limits.__annotations__}
    facts["stated"] = {image: asdict(about) for image, about in stated.items()}
    facts["decoders"] = [library.__version__ for library in (cv2, PIL, pydicom)]
    with checkpoints.folder(f"ingest-{args.dataset}", **facts) as kept:
        with tqdm(desc=f"ingest {args.dataset}", unit="image", disable=None) as bar:
            for group in todo:
                decode_group(kept, group, reader, settings, workers, bar)
        table = gather([path for group in todo for path in chunks(kept, group)])
        met = Met.of_all(files.read_json(kept / f"{group.key}.complete") for group in todo)
        require_enough(table, args.dataset, limit, met.others)
        with files.output(f"data/images/{args.dataset}") as folder:
            write_shards(table, kept, folder, settings.size_px, settings.shard_images)
        with files.output(f"reports/labels/{args.dataset}.images.json") as path:
            told = met.told(manifest["unused"].get("images", {}))
            if unread := told.get("left_unread"):
                print(f"{unread['count']} images or archives were left unread, e.g. {unread['first']}", file=sys.stderr)
            files.write_json(summarize(table, args.dataset, met.others, told, settings.near_duplicate_bits), path)
