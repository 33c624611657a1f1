"""Findings on films of your own, by the exported student: `python -m stages.predict_image film.png folder/ --out mine`.

Takes PNG, JPEG and DICOM files and folders of them, on any machine, without torch. Writes into `--out`: results.csv (a
row a film, a column a finding), results.jsonl (a line a film, with logits and thresholds) and, with --explain, maps/ (a
picture for each finding that is called: the film with its class map). A second call with the same --out leaves what was
answered and goes on with the rest. What is plainly no frontal chest film is refused, by checks that
stages/films/plausibility.py states; that a grey picture shows a chest, upright and with white bones, it cannot know.

Exit code: 0, or 1 if a file was refused, or 2 if nothing could be done. Research only: not for diagnosis.
"""

import argparse
import hashlib
import io
import os
import re
import stat
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from tqdm import tqdm

from stages.core import arguments
from stages.device.answers import LINES, MAPS, TABLE, Answers
from stages.device.running import Exported, FolderError, Session
from stages.films import decoding, plausibility
from stages.films.headers import ImageError
from stages.sources import archives

STEM = 40  # letters of a film's name in a picture's
AT_ONCE = (os.cpu_count() or 1) + 1  # threads: while one waits for the interpreter, another computes
AHEAD = 32  # films under way
SHOWN_PX = 512  # side of a picture with a class map
OPACITY = 0.6  # of a map where it is strongest
LISTED = 20  # films whose findings are printed; of more, only how many
Given = TypeVar("Given")
Made = TypeVar("Made")


@dataclass
class Film:
    """A file on its way.

    Attributes:
        path: as it was given or found.
        facts: file, bytes and time of change, SHA-256, then what the model answers.
        refused: why it is not answered.
        square: as the model takes it.
        picture: as it is shown, where maps are asked for.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    refused: str | None = None
    square: np.ndarray | None = None
    picture: np.ndarray | None = None


@dataclass(frozen=True)
class Asked:
    """What one call is about.

    Attributes:
        exported: the folder of the model.
        file: of it, that answers.
        population: whose calibration and thresholds are used, by its place.
        is_explained: whether maps are made.
        out: where answers go.
        at_once: films that are worked on at once, each on a thread.
    """

    exported: Exported
    file: str
    population: int
    is_explained: bool
    out: Path
    at_once: int

    @property
    def by(self) -> dict[str, str]:
        """What each answer was made by."""
        return {"model": self.exported.require(self.file), "population": self.exported.populations[self.population]}


def found_below(given: Iterable[Path], out: Path) -> Iterator[tuple[Path, str]]:
    """The files among some paths and in folders among them, a folder's in order of their names; with resolved paths.

    Files of the system, hidden ones and the answers in `out` are left out, and a file that is named twice comes once.
    """
    seen: set[str] = set()
    for path in given:
        for file, whole in _below(path, out) if _is_folder(path) else ((path, resolved(path)),):
            if whole not in seen:
                seen.add(whole)
                yield file, whole


def _below(folder: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """The files of a folder and of those below it, linked ones too, each folder once."""

    def unreadable(error: OSError) -> None:
        faults.append(Path(error.filename))

    own, visited, faults = resolved(out), set[str](), list[Path]()
    for root, folders, names in os.walk(folder, onerror=unreadable, followlinks=True):
        here = resolved(Path(root))
        is_own, is_new = here == own, here not in visited
        visited.add(here)
        hidden = (MAPS,) if is_own else ()
        folders[:] = sorted(name for name in folders if is_new and not name.startswith(".") and name not in hidden)
        for name in sorted(names) if is_new else ():
            if not (name.startswith(".") or archives.is_of_system(name) or (is_own and name in (LINES, TABLE))):
                file = Path(root, name)
                yield file, resolved(file) if file.is_symlink() else f"{here}/{name}"
    yield from ((fault, resolved(fault)) for fault in faults)  # reading one says why it cannot be read


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # reading it says why
        return False


def resolved(path: Path) -> str:
    """By what a film is known, however it is named; links are followed."""
    return os.path.realpath(path)


def shown(name: Path | str) -> str:
    """A name as a terminal shows it, whatever bytes it has."""
    text = str(name).encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def read(path: Path, whole: str, asked: Asked) -> Film:
    """A file decoded, or refused with the reason; `whole` is its resolved path."""
    film = Film(path, {"file": str(path), "path": whole})
    limits, size_px = asked.exported.about["ingest"], asked.exported.about["size_px"]
    try:
        content = _content(path, film.facts, limits["max_pixels"])
        decoded = decoding.decode(content, decoding.Stated(), limits["max_pixels"])
        square = decoding.squared(decoded, size_px, limits["min_range"])
        plausibility.require_film(content, decoded, size_px)
        film.square = square
        film.picture = decoded.square(SHOWN_PX) if asked.is_explained else None
    except ImageError as error:
        film.refused = str(error)
    except OSError as error:
        film.refused = f"cannot be read: {error.strerror}"
    return film


def _content(path: Path, facts: dict[str, Any], max_pixels: int) -> bytes:
    about = path.stat()
    facts |= {"bytes": about.st_size, "changed_ns": about.st_mtime_ns}
    if not stat.S_ISREG(about.st_mode):
        raise ImageError("no file that can be read" if not path.is_dir() else "a folder that cannot be read")
    if about.st_size > decoding.largest_bytes(max_pixels):
        raise ImageError(f"more bytes than a film of {max_pixels:,} pixels can have")
    content = path.read_bytes()
    facts["sha256"] = hashlib.sha256(content).hexdigest()
    try:
        decoding.kind_of(content)
    except ImageError:
        if archives.is_archive(path):
            raise ImageError("an archive: unpack it, and name the folder") from None
        raise
    return content


def answer(film: Film, asked: Asked, session: Session, maps: Session | None) -> Film:
    """What the model says of a film, in its facts, and maps of what it calls."""
    if film.square is None:
        return film
    logits, probabilities = session.answer(film.square)
    chosen = asked.exported.about["populations"][asked.population]
    found = {}
    for place, name in enumerate(asked.exported.findings):
        probability, threshold = float(probabilities[asked.population, place]), chosen["threshold"][place]
        found[name] = {
            "logit": round(float(logits[place]), 6),
            "probability": None if np.isnan(probability) else round(probability, 6),
            "threshold": threshold,
            "called": None if threshold is None else bool(logits[place] >= threshold),
        }
    film.facts |= asked.by | {"findings": found}
    if maps and film.picture is not None:
        film.facts["maps"] = {name: _map(film, asked, maps, name) for name, one in found.items() if one["called"]}
    return film


def _map(film: Film, asked: Asked, maps: Session, finding: str) -> str:
    """Write a film's picture with the class map of a finding; its path below `out`."""
    assert film.square is not None and film.picture is not None  # noqa: S101, PT018 - for mypy: `answer` has asked
    heat = np.maximum(maps.explain(film.square, asked.exported.findings.index(finding))[2], 0)
    heat = cv2.resize(heat / max(float(heat.max()), np.finfo(np.float32).tiny), (SHOWN_PX, SHOWN_PX))
    colours = cv2.applyColorMap(np.round(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    opacity = (OPACITY * heat)[..., None]
    picture = np.round(film.picture[..., None] * (1 - opacity) + colours * opacity).astype(np.uint8)
    stem = re.sub(r"[^\w.-]", "_", film.path.stem)[:STEM]
    name = f"{MAPS}/{stem}_{film.facts['sha256'][:12]}_{finding}.png"
    _replace(asked.out / name, cv2.imencode(".png", picture)[1].tobytes())
    return name


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{threading.get_ident()}.part")  # the same film twice is two threads' work
    temporary.write_bytes(content)
    temporary.replace(path)


@dataclass
class Counted:
    """What came of a call's films.

    Attributes:
        answered: how many.
        refused: how many.
        first: what is known of the first LISTED that were answered.
    """

    answered: int = 0
    refused: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def note(self, facts: dict[str, Any]) -> None:
        """Count a film."""
        if "refused" in facts:
            self.refused += 1
            return
        self.answered += 1
        if len(self.first) < LISTED:
            self.first.append(facts)


def ahead(pool: Executor, work: Callable[[Given], Made], given: Iterable[Given]) -> Iterator[Made]:
    """`map` in a pool, in order, with at most AHEAD results waiting."""
    waiting: deque[Any] = deque()
    for one in given:
        waiting.append(pool.submit(work, one))
        if len(waiting) > AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def predict(given: list[Path], asked: Asked) -> Counted:
    """Answer all films that no earlier call answered; what came of it.

    Raises:
        FolderError: of the model's folder, or of `out`.
    """
    exported = asked.exported
    session, maps = exported.session(asked.file, 1), None
    if asked.is_explained:
        maps = exported.session(map_file(exported, asked.file), 1)
    known = Answers(asked.out, exported.findings, asked.by, asked.is_explained)

    def todo() -> Iterator[tuple[Path, str]]:
        return (found for found in found_below(given, asked.out) if found[1] not in known.done)

    def one(found: tuple[Path, str]) -> Film:
        return answer(read(*found, asked), asked, session, maps)

    total, counted = None, Counted()
    if sys.stderr.isatty():
        total = sum(1 for _ in todo())  # for the bar
    if not known.done and next(todo(), None) is None:
        raise FolderError(f"no file in {', '.join(map(shown, given))}: name films, or folders that hold some")
    if known.done:
        print(f"{len(known.done)} films were answered before", file=sys.stderr)
    cv2.setNumThreads(1)
    with (
        known.added() as add,
        ThreadPoolExecutor(asked.at_once) as pool,
        tqdm(total=total, unit="film", disable=None) as bar,
    ):
        for film in ahead(pool, one, todo()):
            facts = film.facts
            if film.refused is None:
                same = known.same.setdefault(facts["sha256"], facts["file"])
                facts |= {"same_as": same} if same != facts["file"] else {}
            else:
                facts["refused"] = film.refused
                bar.write(f"{shown(film.path)}: {film.refused}", file=sys.stderr)
            counted.note(facts)
            add(facts)
            bar.update()
    return counted


def map_file(exported: Exported, file: str) -> str:
    """The file with maps that goes with another.

    Raises:
        FolderError: the folder has no maps.
    """
    if exported.about["map"] is None:
        raise FolderError(f"{exported.folder} has no class maps: {exported.about['no_map']}")
    named = file.replace("student", "student_map", 1)
    if named in exported.about["map"]["files"]:
        return named
    print(f"{file} has no class maps of its own: those are student_map.onnx's", file=sys.stderr)
    return "student_map.onnx"


def show(counted: Counted, asked: Asked) -> None:
    """Print what was found, if it is little, and a line on all."""
    titles = {one["name"]: one["title"] for one in asked.exported.about["findings"]}
    for facts in counted.first if counted.answered <= LISTED else []:
        print(shown(facts["file"]))
        called = {name: one for name, one in facts["findings"].items() if one["called"]}
        for name, one in called.items():
            stated = "" if one["probability"] is None else f" {one['probability']:.2f}"
            print(f"  {titles[name]}{stated}")
        if not called:
            print("  no finding at its threshold")
    worked = counted.answered or counted.refused
    told = f"{counted.answered} films answered, {counted.refused} refused" if worked else "nothing was left to do"
    print(
        f"{told}: {shown(asked.out / TABLE)}. Probabilities hold for films like those of {asked.by['population']} "
        "(--population). Research only: not for diagnosis."
    )


def parsed(argv: list[str] | None) -> tuple[list[Path], Asked]:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("films", nargs="+", type=Path, help="files, and folders of files")
    parser.add_argument("--out", type=Path, default=Path("answers"), help="where answers go (answers)")
    parser.add_argument("--explain", action="store_true", help="write pictures with class maps too")
    parser.add_argument("--model", type=Path, default=Path("data/export"), help="the exported folder (data/export)")
    parser.add_argument("--file", default="student.onnx", help="of it: student.onnx, or a smaller one")
    parser.add_argument("--population", help="whose films yours are like: a population of model.json (its first)")
    parser.add_argument("--threads", type=arguments.at_least_one, default=AT_ONCE, help=f"films at once ({AT_ONCE})")
    args = parser.parse_args(argv)
    exported = Exported.of(args.model)
    chosen = exported.populations[0] if args.population is None else args.population
    if chosen not in exported.populations:
        raise FolderError(f"--population {chosen}: {args.model} knows {', '.join(exported.populations)}")
    if args.file not in exported.answering:
        raise FolderError(f"--file {args.file}: {args.model} has {', '.join(exported.answering)}")
    place = exported.populations.index(chosen)
    return args.films, Asked(exported, args.file, place, args.explain, args.out, args.threads)


def main(argv: list[str] | None = None) -> int:
    """Answer films; the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        given, asked = parsed(argv)
        counted = predict(given, asked)
        show(counted, asked)
    except FolderError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
    except OSError as error:
        place = shown(error.filename or asked.out)
        print(
            f"{place}: {error.strerror}: make room or name another --out, then the same command goes on",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 2
    return 1 if counted.refused else 0


if __name__ == "__main__":
    sys.exit(main())
