"""Learning curves of every model as git has them: copies of what the trainings wrote.

Reads data/curves. Writes reports/curves. Stops when a curve is missing, or is there of a model that params.yaml no
longer declares.
"""

import shutil

from stages.core import arguments, files, params
from stages.judging import cells


def main(argv: list[str] | None = None) -> None:
    """Copy each curve."""
    arguments.parser(__doc__).parse_args(argv)
    names = [f"{model.id}.csv" for model in cells.models(*params.load(*cells.PARAMS))]
    folder = files.input("data/curves")
    cells.require_declared(folder, "**/*.csv", set(names))
    with files.output("reports/curves") as made:
        for name in names:
            (made / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, made / name)


if __name__ == "__main__":
    main()
