"""Record what decides the bytes of a group of stages' results: Python, instruction set, package versions.

Reads requirements.lock; writes `reports/environment/<group>.json`, which the stages of the group depend on, so that an
upgrade runs again what it may change. Stops when an installed package is not the one that the lock file pins.
"""

from stages.core import arguments, files
from stages.pipeline import pinning


def main(argv: list[str] | None = None) -> None:
    """Record one group."""
    args = arguments.parser(__doc__, group={"choices": sorted(pinning.GROUPS)}).parse_args(argv)
    files.input("requirements.lock")
    pinning.require_lock()
    with files.output(f"reports/environment/{args.group}.json") as path:
        files.write_json(pinning.facts(args.group), path)


if __name__ == "__main__":
    main()
