"""Exported files run by onnxruntime, as an app would."""

from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Session:
    """A file of data/export on the CPU."""

    def __init__(self, path: Path, threads: int) -> None:
        """Load a file.

        Args:
            path: an .onnx file.
            threads: of the CPU.
        """
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def answer(self, film: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Logits (finding,) and probabilities (population, finding) of a grey film (height, width)."""
        logits, probabilities = self._session.run(["logits", "probabilities"], {"film": film})
        return logits, probabilities

    def explain(self, film: NDArray[np.uint8], finding: int) -> NDArray[np.float32]:
        """The class map of the finding at this place, on its grid."""
        (made,) = self._session.run(["map"], {"film": film, "finding": np.array(finding)})
        return np.asarray(made)
