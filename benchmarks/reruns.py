"""What an edit runs again: `python -m benchmarks.reruns [REVISION ...]`.

Prints, for this working tree and for each git revision named, the lines of dvc.yaml and the longest file of code, and
how many cells an edit of one file of `stages/` makes stale, averaged over all files: those whose `deps` hold the file
(a folder holds what is below it), and those with all that follow from them. Cells are those of the tree's params.yaml.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import networkx as nx
from dvc.repo import Repo

LONG = 400  # lines; longer files are listed
CODE = (".py", ".csv", ".css", ".j2")


def count(folder: Path) -> dict[str, float]:
    """The figures of a checkout."""
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in (folder / "stages").rglob("*")
        if path.suffix in CODE and path.stat().st_size and "__pycache__" not in path.parts
    )
    graph = nx.DiGraph(Repo(str(folder)).index.graph).reverse()  # edges from a stage to the ones after it
    deps = {stage: {dep.def_path for dep in stage.deps} for stage in graph}
    behind = {stage: nx.descendants(graph, stage) | {stage} for stage in graph}
    direct, whole = 0, 0
    for file in files:
        holders = {file, *map(str, Path(file).parents)}
        stale = {stage for stage in graph if deps[stage] & holders}
        direct += len(stale)
        whole += len(set().union(*(behind[stage] for stage in stale)))
    lines = {file: len((folder / file).read_text(encoding="utf-8").splitlines()) for file in files}
    longest = max((file for file in files if "/phantom/" not in file), key=lambda file: lines[file])
    return {
        "lines of dvc.yaml": len((folder / "dvc.yaml").read_text(encoding="utf-8").splitlines()),
        "cells": len(graph),
        "files": len(files),
        "cells an edit makes stale": round(direct / len(files), 2),
        "with what follows": round(whole / len(files), 2),
        f"lines of {longest}": lines[longest],
    }


def checked_out(revision: str, folder: Path) -> Path:
    """A revision's files in a folder."""
    packed = subprocess.run(["git", "archive", revision], check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", str(folder)], input=packed, check=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n", encoding="utf-8")
    return folder


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="a git revision to compare with")
    args = parser.parse_args()
    found = {"this tree": count(Path())}
    for revision in args.revisions:
        with tempfile.TemporaryDirectory() as folder:
            found[revision] = count(checked_out(revision, Path(folder)))
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{what} {number:g}" for what, number in figures.items()))


if __name__ == "__main__":
    main()
