"""Take the trials for those of today's code, where it is proven: `python -m benchmarks.trials.same --since <revision>`.

Code that trials depend on may change without any effect on what is trained: a path, a message, a comment. Proven it is
where every training and soft label of the default has the same bytes in today's dvc.lock as in that of the revision,
and today's ran with the code of this checkout. Then the hashes of the code in reports/choices are written anew; else it
refuses, and `make trials` runs them again.
"""

import argparse
import sys
from pathlib import Path

from ruamel.yaml import YAML

from stages import choice
from stages.core import files, params
from stages.pipeline import lock, revisions

TRAINED = ("data/models/", "data/soft_labels/")


class NotProvenError(ValueError):
    """Trainings differ, or were not by this code."""


def require_same(since: str, stale: list[str]) -> int:
    """How many outputs of trainings prove that changed code trains the same.

    Args:
        since: a commit whose trainings were by the code of the trials.
        stale: code that changed since.

    Raises:
        NotProvenError: they do not.
    """
    now = revisions.entries(revisions.HERE)
    then, made = lock.producers(revisions.entries(since)), lock.producers(now)
    outputs = [path for path in made if path.startswith(TRAINED)]
    if other := [path for path in outputs if path not in then or then[path][1] != made[path][1]]:
        raise NotProvenError(f"{other[0]} has other bytes than in {since[:12]}: run `make trials`")
    stages = {made[path][0] for path in outputs}
    read = {dep["path"]: dep["md5"] for stage in stages for dep in now[stage]["deps"]}
    for path in stale:
        held = next((one for one in read if one == path or path.startswith(f"{one}/")), None)
        if held is None or lock.md5(Path(held)) != read[held]:
            raise NotProvenError(f"no training in dvc.lock ran with this {path}: run `make repro`, or `make trials`")
    return len(outputs)


def main(argv: list[str] | None = None) -> None:
    """Prove, write, say so."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", required=True, help="a commit whose trainings were by the code of the trials")
    since = parser.parse_args(argv).since
    try:
        name, folder = params.read()["choice"], Path("reports/choices")
        trials, code = choice.read(folder, name), choice.sources()
        held = trials.made_of.code
        stale = sorted(path for path in held if code.get(path) != held[path])
        count = require_same(revisions.commit_of(since), stale)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    path, yaml = folder / f"{name}.yaml", YAML()
    yaml.width = 10**6
    content = yaml.load(path.read_text(encoding="utf-8"))
    for one in stale:
        content["made_of"]["code"][one] = code[one]
    with files.whole(path) as made, made.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)
    print(f"{count} trainings and soft labels have the bytes that they had in {since}: {', '.join(stale) or 'nothing'}")


if __name__ == "__main__":
    main()
