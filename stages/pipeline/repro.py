"""Run the pipeline, several stages at a time: what `make repro` and `make run` do.

`dvc repro` runs one stage after another. Here each stage that is due is a `dvc repro --single-item` of its own, started
as soon as those before it are done, as many at a time as the cores have room for (params.yaml: `threads` of each, times
the `processes` of a training). The results, `dvc.lock` and the guard are the same: DVC's own locks (`--wait-for-lock`)
let one process write at a time. What is stopped takes its stages with it; what a kill leaves is mended by the next run
(see `recovery`).
"""

# ruff: noqa: E402 - an interrupt while modules are imported ends in a line too
import signal
import sys


def _stop_early(*_: object) -> None:
    sys.exit("stopped before anything was started")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, _stop_early)
    signal.signal(signal.SIGTERM, _stop_early)

import os
import subprocess
import tempfile
import time
from pathlib import Path

import networkx as nx
from tqdm import tqdm

from stages.core import arguments, files, params
from stages.pipeline import check, lock, pinning, recovery

RAN = "Running stage"  # how DVC says that it ran a command
TAIL_LINES = 40  # shown of a failed stage
POLL_S = 0.2
STOPPED: list[object] = []  # the signal that asked for it


def due() -> nx.DiGraph:
    """The stages that changed and those that follow from them, with edges from a stage to the ones after it."""
    with recovery.still() as repo:  # under one lock DVC reads dvc.yaml and dvc.lock once, not for each question anew
        recovery.require_writable(Path(repo.cache.local_cache_dir))
        graph = nx.DiGraph(nx.relabel_nodes(repo.index.graph, lambda stage: stage.addressing)).reverse()
        changed = set(repo.status()) & set(graph)
    return nx.DiGraph(graph.subgraph(changed.union(*(nx.descendants(graph, stage) for stage in changed))))


def record_environment() -> None:
    """Record what this machine would compute with, where it is not what was recorded: what depends on it is then due.

    Raises:
        EnvironmentMismatchError: packages are not those of the lock file.
        RuntimeError: DVC failed.
    """
    pinning.require_lock()
    if reason := pinning.unpinnable():
        print(f"{reason}: the instruction set is not pinned, and results have other bytes than on x86-64 with AVX2")
    for group in pinning.GROUPS:
        path = pinning.FOLDER / f"{group}.json"
        if path.exists() and (changed := list(pinning.differing(files.read_json(path), pinning.facts(group)))):
            print(f"{path} is recorded anew: {'; '.join(changed)}")
            lock.dvc("repro", "--force", "--single-item", f"environment@{group}")


def run(graph: nx.DiGraph, lanes: int) -> None:
    """Run the stages of a graph, at most `lanes` at a time; those with the longest chain behind them go first.

    Args:
        graph: edges from a stage to the ones after it.
        lanes: stages at a time.

    Raises:
        subprocess.CalledProcessError: a stage failed; its last lines were printed, and those beside it have ended.
    """
    behind: dict[str, int] = {}
    for stage in reversed(list(nx.topological_sort(graph))):
        behind[stage] = 1 + max((behind[after] for after in graph.successors(stage)), default=0)
    waiting = {stage: graph.in_degree(stage) for stage in sorted(graph, key=lambda stage: -behind[stage])}
    running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    failed: subprocess.CalledProcessError | None = None
    with (
        tempfile.TemporaryDirectory(prefix="repro-") as logs,
        tqdm(total=len(graph), unit="stage", disable=None, bar_format="{n}/{total} stages, {elapsed}{postfix}") as bar,
    ):
        try:
            while running or (waiting and not failed):
                ready = [stage for stage, before in waiting.items() if before == 0] if not failed else []
                for stage in ready[: lanes - len(running)]:
                    del waiting[stage]
                    running[stage] = _start(stage, _log(logs, stage)), time.time()
                    bar.set_postfix_str(", ".join(running))
                time.sleep(POLL_S)
                if STOPPED:  # and the exception was lost, in a destructor say, where Python ignores it
                    raise KeyboardInterrupt
                for stage, (process, start) in list(running.items()):
                    if process.poll() is None:
                        continue
                    del running[stage]
                    said = _log(logs, stage).read_text(encoding="utf-8", errors="replace")
                    if fault := _fault(stage, process, said, start):
                        bar.write(fault, file=sys.stderr)
                        failed = subprocess.CalledProcessError(process.returncode, process.args)
                        continue
                    result = f"ran, {time.time() - start:.0f} s" if RAN in said else "did not change"
                    recovery.keep()
                    bar.write(f"{stage}: {result}", file=sys.stdout)
                    bar.update()
                    for after in graph.successors(stage):
                        waiting[after] -= 1
        finally:
            recovery.end(process for process, _ in running.values())
    if failed:
        raise failed
    lock.record_processors()


def due_after_environment() -> nx.DiGraph:
    """Run the environment stages that are due, and return what is due then: most upgrades change no record."""
    graph = due()
    if first := [stage for stage in graph if stage.startswith("environment@")]:
        run(nx.DiGraph(graph.subgraph(first)), lanes=1)
        graph = due()
    return graph


def _fault(stage: str, process: subprocess.Popen[bytes], said: str, start: float) -> str:
    """What to say of a stage that failed, or of which DVC recorded what did not run; nothing of others."""
    if process.returncode:
        tail = "\n".join(said.replace("\r", "\n").splitlines()[-TAIL_LINES:])
        return f"{tail}\n{stage} failed"
    if RAN not in said:
        return ""
    try:
        edited = lock.forged(stage)
    except recovery.LockFileError:
        return f"a kill cut {lock.LOCK} off as {stage} ended: run `make repro` again, which mends it"
    if not edited:
        return ""
    lock.forget(stage, start)
    return (
        f"{', '.join(edited)} changed as {stage} ended: DVC recorded what had not run, which is forgotten again. Run "
        "`make repro` again."
    )


def _start(stage: str, log: Path) -> subprocess.Popen[bytes]:
    """Run a stage under DVC, in a session of its own, so that what it starts can be ended with it."""
    words = ["dvc", "--wait-for-lock", "repro", "--single-item", stage]
    with log.open("wb") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, start_new_session=True)


def _log(folder: str, stage: str) -> Path:
    return Path(folder) / f"{stage}.log"


def run_due(lanes: int | None) -> None:
    """Mend what a kill left and run what is due; ends the process with a line where it cannot.

    Args:
        lanes: stages at a time; None: as many as the cores have room for.
    """
    try:
        given = check.parse(params.read())
        recovery.require_writable(*recovery.WRITTEN)
        recovery.require_commit()
        recovery.wait_for(recovery.left_running())
        for line in recovery.mend():
            print(line)
        record_environment()
        graph = due_after_environment()
        if not graph:
            print("nothing to run: all stages are up to date")
            return
        check.everything(params.read())  # imports plug-ins, and so torch: where there is nothing to run, for nothing
    except (ValueError, FileNotFoundError, RuntimeError) as fault:
        sys.exit(str(fault))
    except subprocess.CalledProcessError:
        sys.exit(1)
    threads = given.threads * max(given.train.teacher.processes, given.train.student.processes)
    try:
        run(graph, lanes or max(1, (os.cpu_count() or 1) // threads))
    except subprocess.CalledProcessError:
        sys.exit(1)


def main() -> None:
    """Run what is due, until it is done or stopped."""
    parser = arguments.parser(__doc__)
    parser.add_argument("--lanes", type=arguments.at_least_one, help="stages at a time (what the cores have room for)")
    args = parser.parse_args()
    for asked in (signal.SIGINT, signal.SIGTERM):
        signal.signal(asked, stop)
    try:
        run_due(args.lanes)
    except KeyboardInterrupt:
        sys.exit("stopped, with all that it had started: the same command goes on from here")


def stop(sent: int, _: object) -> None:
    """What the interrupt key does, and a TERM."""
    STOPPED.append(sent)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
