"""Run a preset beside the committed state: `python -m stages.core.preset <preset> [--root <folder>]`.

The tracked files are copied to `runs/<preset>/`, the preset becomes `params.yaml` there, and the pipeline runs there
with the cache of this checkout. Nothing outside `runs/` changes; a second call runs what changed since the first.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

from stages.core import params

NEEDED = ("stages", "reports/kd_gain", "dvc.yaml", ".dvcignore", ".gitignore")
PLACE = re.compile(r"((?:root|checkpoint): )ROOT\b")
CONFIG = '[core]\n    no_scm = true\n    analytics = false\n[cache]\n    dir = {cache}\n    type = "hardlink,symlink"\n'


def tracked(repository: Path) -> list[str]:
    """The files that a run needs: those that git tracks, and new ones that it does not ignore."""
    listing = ["git", "-C", str(repository), "ls-files", "-z", "--cached", "--others", "--exclude-standard", *NEEDED]
    names = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")
    return [name for name in names if name and (repository / name).is_file()]


def with_root(text: str, root: str | None) -> str:
    """A preset with its `ROOT`, in roots and checkpoints, replaced by the folder that the user named.

    Raises:
        ValueError: the preset needs a root and none was given, or one was given that it does not use.
        FileNotFoundError: no such folder, or nothing in it.
    """
    needs = PLACE.search(text) is not None
    if needs and root is None:
        raise ValueError("this preset reads your own files: name their folder, `make run PRESET=... ROOT=<folder>`")
    if root is None:
        return text
    if not needs:
        raise ValueError("this preset reads no files of yours: leave ROOT out")
    folder = Path(root).resolve()
    if not folder.is_dir() or not any(folder.iterdir()):
        raise FileNotFoundError(f"ROOT={root} is no folder with files: README's table says what it must hold")
    return PLACE.sub(lambda found: f"{found[1]}{folder}", text)


def export(preset: Path, target: Path, root: str | None = None, repository: Path | None = None) -> None:
    """Lay out a run: tracked files, the preset as `params.yaml`, the cache of the repository.

    Args:
        preset: a params file.
        target: the run's folder; what is there and no longer tracked goes, results stay.
        root: replaces `ROOT` in the preset.
        repository: where to copy from; the current folder by default.
    """
    source = (repository or Path()).resolve()
    text = with_root(preset.read_text(encoding="utf-8"), root)
    params.parse(YAML(typ="safe").load(text), str(preset))
    names = tracked(source)
    for old in [*target.glob("stages/**/*.py"), *target.glob("stages/**/*.csv")]:
        if old.relative_to(target).as_posix() not in names:
            old.unlink()
    for name in names:
        place, content = target / name, (source / name).read_bytes()
        if not place.exists() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    (target / "params.yaml").write_text(text, encoding="utf-8")
    (target / ".dvc").mkdir(exist_ok=True)
    (target / ".dvc/config").write_text(CONFIG.format(cache=source / ".dvc/cache"), encoding="utf-8")
    (target / "reports").mkdir(exist_ok=True)


def repro(target: Path) -> int:
    """Run what is due in a laid-out run; the exit code."""
    command = [sys.executable, "-m", "stages.core.repro"]
    return subprocess.run(command, cwd=target, check=False, env={**os.environ, "PWD": str(target)}).returncode


def main() -> None:
    """Parse, lay out, run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("preset", help="a file in presets/, without its ending")
    parser.add_argument("--root", help="folder with your own files, for presets that read them")
    args = parser.parse_args()
    preset = Path("presets") / f"{args.preset}.yaml"
    if not args.preset or not preset.is_file():
        known = ", ".join(sorted(path.stem for path in Path("presets").glob("*.yaml")))
        sys.exit(
            f"name a preset: make run PRESET=<name>, there are {known}"
            + (f"; got {args.preset}" if args.preset else "")
        )
    target = Path("runs") / args.preset
    try:
        export(preset, target, args.root or None)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    code = repro(target)
    if code == 0:
        print(f"report: {target / 'reports/index.html'}")
    sys.exit(code)


if __name__ == "__main__":
    main()
