"""What decides the bytes of a result besides code, params and data: the instruction set, Python and the packages.

Numerical libraries choose code by the processor, and other code rounds otherwise. `pin` makes all of them take their
code for AVX2, which x86-64 processors have had since 2015, so that Intel and AMD, with and without AVX-512, give the
same bytes. It must run before any of these libraries is imported. A variable that the user has set is left alone.

The stage `environment` records `facts` for each group of stages, and the stages depend on its files.
"""

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PINS = {
    "ARROW_USER_SIMD_LEVEL": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch
    "MKL_CBWR": "COMPATIBLE",  # its AVX2 is other code on AMD than on Intel
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR",  # NumPy
    "NUMBA_CPU_NAME": "x86-64-v3",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    "OPENBLAS_NUM_THREADS": "1",  # the number of threads changes the order of sums; `nets.fix` sets it for PyTorch
    "OPENCV_CPU_DISABLE": "AVX512-SKX",
    "OPENCV_IPP": "avx2",
}
# Group of stages -> the distributions whose version may change a result of theirs.
GROUPS = {
    "images": ("llvmlite", "numba", "numpy", "opencv-python-headless", "pandas", "pandera", "pillow", "pyarrow",
               "pydicom", "torchxrayvision"),
    "training": ("llvmlite", "numba", "numpy", "opencv-python-headless", "pandas", "pyarrow", "safetensors", "scipy",
                 "timm", "torch"),
    "evaluation": ("fvcore", "grad-cam", "huggingface_hub", "Jinja2", "MarkupSafe", "matplotlib", "mlcroissant",
                   "numpy", "onnx", "onnxruntime", "onnxscript", "opencv-python-headless", "pandas", "pillow",
                   "pyarrow", "scikit-image", "scikit-learn", "scipy"),
}  # fmt: skip
FOLDER = Path("reports/environment")
PROCESSORS = FOLDER / "processors.json"  # stage -> processor; in no stage's outputs, since bytes must not depend on it
LOCK = Path("requirements.lock")
CPU_INFO = Path("/proc/cpuinfo")
X86_64 = ("x86_64", "AMD64")


class EnvironmentMismatchError(RuntimeError):
    """Packages or the instruction set are not those that are recorded; the message says what to do."""


def unpinnable() -> str | None:
    """Return why this machine cannot take the pins, None where it can."""
    machine = platform.machine()
    if machine not in X86_64:
        return f"{machine}, which is not x86-64"
    if CPU_INFO.exists() and "avx2" not in CPU_INFO.read_text(encoding="utf-8").split():
        return f"{machine} without AVX2"
    return None


def processor() -> str:
    """Return the name of this machine's processor and, of an x86-64 one, whether it has AVX-512."""
    name, flags = platform.processor() or platform.machine(), None
    if CPU_INFO.exists():
        text = CPU_INFO.read_text(encoding="utf-8")
        names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
        name, flags = (names or [name])[0], text.split()
    if flags is None or platform.machine() not in X86_64:
        return name
    return f"{name}, {'with' if 'avx512f' in flags else 'without'} AVX-512"


def pin() -> None:
    """Set the variables of `PINS` that are not set, for this process and those that it starts."""
    if unpinnable() is None:
        for name, value in PINS.items():
            os.environ.setdefault(name, value)


@contextmanager
def released() -> Iterator[None]:
    """Start processes of the block without the pins: what a user's own program would run with."""
    pinned = {name: value for name, value in PINS.items() if os.environ.get(name) == value}
    for name in pinned:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(pinned)


def facts(group: str) -> dict[str, Any]:
    """Return what decides the bytes of a group's results on this machine.

    Returns:
        `python` (major and minor version), `instruction_set` (each variable of `PINS`, or why there are none) and
        `packages` (name -> version, None if not installed).
    """
    reason = unpinnable()
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "instruction_set": reason or {name: os.environ.get(name, value) for name, value in PINS.items()},
        "packages": {name: version(name) for name in GROUPS[group]},
    }


def version(distribution: str) -> str | None:
    """Return the installed version of a distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def differing(recorded: dict[str, Any], found: dict[str, Any], above: str = "") -> Iterator[str]:
    """Yield each fact that differs, in words.

    Args:
        recorded: as of `facts`.
        found: likewise.
        above: the key that both stand under.
    """
    for key in sorted(recorded.keys() | found.keys()):
        was, is_ = recorded.get(key), found.get(key)
        if isinstance(was, dict) and isinstance(is_, dict):
            yield from differing(was, is_, f"{above}{key} ")
        elif was != is_:
            yield f"{above}{key}: recorded {was}, here {is_}"


def unlike_lock(names: set[str] | None = None, lock: Path = LOCK) -> Iterator[tuple[str, str, str]]:
    """Yield each package that is not installed as the lock file pins it.

    Args:
        names: distributions to look at; None for all that the file names.
        lock: a file of exact pins.

    Yields:
        Name, what the file wants, what is installed (`nothing` if it is not).
    """
    wanted_names = None if names is None else {canonicalize_name(name) for name in names}
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = line.split("#")[0].strip()
        if not text or text.startswith("-"):
            continue
        wanted = Requirement(text)
        is_asked = wanted_names is None or canonicalize_name(wanted.name) in wanted_names
        if not is_asked or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        found = version(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            yield wanted.name, str(wanted.specifier), found or "nothing"


def require_lock() -> None:
    """Check that the packages that decide results are installed as the lock file pins them.

    Raises:
        EnvironmentMismatchError: some are not; the message names them.
    """
    if not LOCK.exists():
        raise EnvironmentMismatchError(f"there is no {LOCK}: `git checkout {LOCK}` brings it back")
    faults = [f"{name}: {LOCK} has {wanted}, installed is {found}" for name, wanted, found in unlike_lock(
        {name for group in GROUPS.values() for name in group})]  # fmt: skip
    if faults:
        listed = "\n".join(f"  {fault}" for fault in faults)
        raise EnvironmentMismatchError(
            f"installed packages are not those of {LOCK}:\n{listed}\n`rm -r .venv`, then `make setup`, installs them; "
            f"to upgrade, change {LOCK} too"
        )
