"""Check params.yaml before any work: schema, rules, findings, and what each plug-in that it names promises.

`python -m stages.core.params [FILE]` and `make repro` do all of it; the guard does all but the promises, which import
plug-ins, and so torch, before each stage.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from stages.core import params
from stages.core.schema import Params
from stages.pipeline import promises, rules


def parse(values: Any, file: str = str(params.FILE)) -> Params:
    """Check a whole params file without importing a plug-in.

    Raises:
        ParamsError: with every fault, each named by its key.
    """
    return _checked(values, file, [])


def everything(values: Any, file: str = str(params.FILE)) -> Params:
    """Check a whole params file, and the plug-ins that it names.

    Raises:
        ParamsError: with every fault.
    """
    return _checked(values, file, promises.of_plugins(values))


def _checked(values: Any, file: str, of_plugins: list[str]) -> Params:
    given, faults = params.fit(values)
    faults += rules.contradictions(given) if given else rules.of_losses(values)
    faults += [fault for fault in [*rules.of_findings(values), *of_plugins] if fault not in faults]
    if faults or given is None:
        raise params.ParamsError(params.message(file, faults))
    return given


def main(argv: list[str] | None = None) -> None:
    """Check the params file of this folder, or another."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=params.FILE, help="a whole params file (params.yaml)")
    args = parser.parse_args(argv)
    try:
        values = params.read(args.file)
        everything(values, str(args.file))
    except (ValueError, FileNotFoundError) as fault:
        sys.exit(str(fault))
    print(f"{args.file} holds, with the {len(list(promises.named(values)))} plug-ins that it names")


if __name__ == "__main__":
    main()
