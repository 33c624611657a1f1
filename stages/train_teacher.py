"""Train a teacher on a cohort.

Reads the cohort and the teacher's start; writes weights, what is needed to load them, and the learning curve. Stops on
a cohort without training or validation films, on a checkpoint that does not fit, and on a loss that is not finite.
"""

import argparse

from stages.core import checkpoints, files, models, objectives, params, plugins, training


def main(argv: list[str] | None = None) -> None:
    """Parse, load, train, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cohort", required=True)
    parser.add_argument("--teacher", required=True)
    args = parser.parse_args(argv)
    seed, threads, views, settings, start = params.load(
        "seed", "threads", "views", "train.teacher", f"teachers.{args.teacher}"
    )
    cohort = training.load_cohort(files.input(f"data/cohorts/{args.cohort}"))
    plugins.load("models", args.teacher)
    names = ("teacher", args.cohort, args.teacher)
    with checkpoints.folder("-".join(names)) as kept:
        model, about, history = training.train(
            cohort, args.teacher, start, objectives.undistilled, settings, views, seed, names, threads, kept / "last.pt"
        )
        with files.output(f"data/models/teacher/{args.cohort}/{args.teacher}") as made:
            models.write(model, about, made)
        with files.output(f"reports/curves/teacher/{args.cohort}/{args.teacher}.csv") as made:
            training.write_history(history, made)


if __name__ == "__main__":
    main()
