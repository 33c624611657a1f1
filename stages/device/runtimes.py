"""What a net costs in a runtime, for a process of its own: start, time, memory, energy."""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.device.running import cpu_session

Batch = NDArray[np.float32]  # (film, 3, size_px, size_px)
BATCHES = (1, 8)
QUANTILES = (0.5, 0.95)
LINUX_STATUS = Path("/proc/self/status")
RAPL = Path("/sys/class/powercap/intel-rapl:0")  # the processor's own count of energy, where the system shows it


def peak_bytes() -> int:
    """The largest resident memory of this process so far.

    Linux carries the parent's ru_maxrss over fork and exec, so there the kernel's own mark of this program is read.
    """
    if LINUX_STATUS.exists():
        marks = [line.split() for line in LINUX_STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(marks[0][1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, others kB


def energy() -> tuple[int, int] | None:
    """Microjoules that the processor has counted, and at how many it begins anew; None where it does not say."""
    try:
        counted, full = (int((RAPL / name).read_text()) for name in ("energy_uj", "max_energy_range_uj"))
    except OSError:
        return None
    return counted, full


def joules(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Between two readings of `energy`."""
    if before is None or after is None:
        return None
    return (after[0] - before[0]) % after[1] / 1e6


def timed(load: Callable[[int], Callable[[Batch], Any]], sizes_px: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Rows of a runtime, by size and batch.

    Sizes go upwards: a process knows only its peak so far, which then is the present size's and batch's.

    Args:
        load: size -> what answers a batch.
        sizes_px: sides of the input.
        repeats: timed passes of a single film, after half as many that are not; of a batch an eighth as many, three or
            more.

    Returns:
        Of each `cold_ms` (loading, and the first film's answer), `latency_ms` of a pass (p50, p95), `peak_bytes`,
        `libraries_bytes` (before anything was loaded) and `joules`, of the whole processor, a film, or None.
    """
    libraries, rows = peak_bytes(), []
    for size_px in sorted(sizes_px):
        start = time.perf_counter()
        answer = load(size_px)
        answer(np.zeros((1, 3, size_px, size_px), np.float32))
        cold_ms = (time.perf_counter() - start) * 1000
        for batch in BATCHES:
            films = np.zeros((batch, 3, size_px, size_px), np.float32)
            passes = repeats if batch == 1 else max(3, repeats // 8)
            for _ in range(passes // 2):
                answer(films)
            times_ms, before = [], energy()
            for _ in range(passes):
                start = time.perf_counter()
                answer(films)
                times_ms.append((time.perf_counter() - start) * 1000)
            spent = joules(before, energy())
            median, high = (round(float(value), 3) for value in np.quantile(times_ms, QUANTILES))
            rows.append(
                {
                    "size_px": size_px,
                    "batch": batch,
                    "cold_ms": round(cold_ms, 3),
                    "latency_ms": {"p50": median, "p95": high},
                    "peak_bytes": peak_bytes(),
                    "libraries_bytes": libraries,
                    "joules": None if spent is None else round(spent / passes / batch, 6),
                }
            )
    return rows


def of_onnx(contents: dict[int, bytes], threads: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of onnxruntime: size -> a file of `graphs.plain`."""

    def load(size_px: int) -> Callable[[Batch], Any]:
        session = cpu_session(contents[size_px], threads)
        return lambda films: session.run(None, {"films": films})

    return timed(load, list(contents), repeats)


def of_torch(
    architecture: str, outputs: int, sizes_px: Sequence[int], threads: int, repeats: int
) -> list[dict[str, Any]]:
    """Rows of PyTorch, eager."""
    import torch

    from stages.nets import nets

    torch.set_num_threads(threads)

    def load(size_px: int) -> Callable[[Batch], Any]:
        model = nets.build_model(architecture, outputs, size_px).eval()

        def answer(films: Batch) -> Any:
            with torch.inference_mode():
                return model(torch.from_numpy(films))

        return answer

    return timed(load, sizes_px, repeats)
