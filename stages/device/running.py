"""The exported folder as an app uses it: model.json read and checked, files run by onnxruntime."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

MODEL = "model.json"  # what the folder says of itself
FORMAT = 1  # of it
KEYS = ("files", "findings", "ingest", "populations", "size_px")  # that nothing works without


class FolderError(ValueError):
    """A folder is not one that the stage `export` wrote, or was changed since; the message says what to do."""


def cpu_session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """A model on so many threads of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class Session:
    """A file of the folder on the CPU."""

    def __init__(self, content: bytes, threads: int) -> None:
        """Load what an .onnx file holds."""
        self._session = cpu_session(content, threads)

    @property
    def findings(self) -> int:
        """How many it answers."""
        (count,) = next(one.shape for one in self._session.get_outputs() if one.name == "logits")
        return int(count)

    def answer(self, film: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (finding,) and probabilities (population, finding) of a grey film (height, width)."""
        logits, probabilities = self._session.run(["logits", "probabilities"], {"film": film})
        return logits, probabilities

    def explain(
        self, film: NDArray[np.uint8], finding: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """As `answer`, of a file with maps, and the class map (row, column) of the finding at this place."""
        logits, probabilities, made = self._session.run(None, {"film": film, "finding": np.array(finding)})
        return logits, probabilities, made


@dataclass(frozen=True)
class Exported:
    """The folder.

    Attributes:
        folder: its path.
        about: what model.json says.
    """

    folder: Path
    about: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "Exported":
        """Read model.json.

        Raises:
            FolderError: it is not there, is damaged, or of another version.
        """
        try:
            about = json.loads((folder / MODEL).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FolderError(
                f"{folder} holds no {MODEL} that can be read: name the folder that `make repro` exported (data/export)"
            ) from error
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise FolderError(f"{folder / MODEL} is of another version than this program, which reads format {FORMAT}")
        if lacking := [key for key in KEYS if about.get(key) in (None, [], {})]:
            raise FolderError(f"{folder / MODEL} lacks {', '.join(lacking)}: copy the folder again")
        return cls(folder, about)

    @property
    def answering(self) -> list[str]:
        """Its files that answer a film without maps."""
        maps = self.about["map"]["files"] if self.about["map"] else []
        return [name for name in self.about["files"] if name.endswith(".onnx") and name not in maps]

    @property
    def findings(self) -> list[str]:
        """Their names, in the order of the outputs."""
        return [one["name"] for one in self.about["findings"]]

    @property
    def populations(self) -> list[str]:
        """Their names, in the order of the probabilities' rows."""
        return [one["name"] for one in self.about["populations"]]

    def require(self, name: str) -> str:
        """The SHA-256 that model.json states of a file.

        Raises:
            FolderError: it lists no such file.
        """
        if name not in self.about["files"]:
            there = [one for one in self.about["files"] if one.endswith(".onnx")]
            raise FolderError(f"{self.folder / MODEL} lists no {name}: there are {', '.join(there)}")
        return str(self.about["files"][name]["sha256"])

    def session(self, name: str, threads: int) -> Session:
        """One of its files, loaded.

        Raises:
            FolderError: model.json does not list it, it is not there, or it has other bytes.
        """
        sha256 = self.require(name)
        try:
            content = (self.folder / name).read_bytes()
        except OSError as error:
            raise FolderError(
                f"{self.folder / name} cannot be read ({error.strerror}): copy the folder again"
            ) from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise FolderError(f"{self.folder / name} is not the file that {MODEL} lists: copy the folder again")
        session = Session(content, threads)
        counts = {session.findings, len(self.findings), *(len(one["threshold"]) for one in self.about["populations"])}
        if len(counts) > 1:
            raise FolderError(f"{self.folder / MODEL} names other findings than {name} answers: copy the folder again")
        return session
