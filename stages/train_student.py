"""Train the undistilled twin: the student's architecture, schedule, views and seed, without a teacher.

Reads the cohort; writes weights, what is needed to load them, and the learning curve. Stops as `train_teacher` does.
"""

from stages.core import arguments, files, params, plugins
from stages.learning import checkpoints, objectives, training
from stages.learning.cohort import load_cohort
from stages.learning.trainer import Recipe
from stages.nets import nets


def main(argv: list[str] | None = None) -> None:
    """Parse, load, train, write."""
    args = arguments.parser(__doc__, "cohort", "student", seed={"type": int}).parse_args(argv)
    seed, threads, views, schedule, rates, start = params.load(
        "seed", "threads", "views", "train.student", "rates.twin", f"students.{args.student}"
    )
    cohort = load_cohort(files.input(f"data/cohorts/{args.cohort}"))
    plugins.load("models", args.student)
    names = ("student", args.cohort, args.student, args.seed)
    recipe = Recipe(cohort, objectives.undistilled, schedule.at(rates.of(args.cohort)), views, seed, names)
    with checkpoints.folder(f"twin-{args.cohort}-{args.student}-{args.seed}") as kept:
        model, about, history = training.train(recipe, args.student, start, threads, kept / "last.pt")
        with files.output(f"data/models/twin/{args.cohort}/{args.student}/{args.seed}") as made:
            nets.write(model, about, made)
        with files.output(f"data/curves/twin/{args.cohort}/{args.student}/{args.seed}.csv") as made:
            training.write_history(history, made)


if __name__ == "__main__":
    main()
