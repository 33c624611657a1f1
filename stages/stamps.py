"""Which results that no stage makes (benchmarks, runs of presets) are of other code than this run's.

Reads reports/by_hand.json, in which the command that wrote such a page stamped the code that it stands on, and the
rooms of code of the pipeline. Writes reports/stamps.json: of each page its command, its commit, and the rooms that have
changed since. Code outside these rooms (benchmarks, presets, tests) `make audit` compares.
"""

from stages.core import arguments, files
from stages.pages.digests import digest


def main(argv: list[str] | None = None) -> None:
    """Compare, write."""
    arguments.parser(__doc__).parse_args(argv)
    stamps = files.read_json(files.input("reports/by_hand.json"))
    rooms = [
        files.input("stages/core"),
        files.input("stages/datasets"),
        files.input("stages/device"),
        files.input("stages/explainers"),
        files.input("stages/films"),
        files.input("stages/ingest"),
        files.input("stages/judging"),
        files.input("stages/learning"),
        files.input("stages/losses"),
        files.input("stages/models"),
        files.input("stages/nets"),
        files.input("stages/phantom"),
        files.input("stages/sources"),
    ]
    now = {room.as_posix(): digest(room) for room in rooms}
    found = {
        page: {
            "command": about["command"],
            "commit": about["commit"],
            "changed": sorted(room for room, held in about["code"].items() if room in now and now[room] != held),
        }
        for page, about in stamps.items()
    }
    with files.output("reports/stamps.json") as path:
        files.write_json(found, path)


if __name__ == "__main__":
    main()
