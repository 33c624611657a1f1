"""Train a student with a teacher's soft labels; steps, views, batches and first weights are its twin's.

Reads the cohort and the teacher's cached logits; writes weights, what is needed to load them, and the learning curve.
The teacher itself runs only for a loss that needs its features. Stops when soft labels or teacher are of other films,
views or findings than the cohort's, or of another teacher, and as `train_student` does.
"""

from stages.core import arguments, files, params, plugins
from stages.learning import checkpoints, soft_labels, terms, training
from stages.learning.cohort import load_cohort
from stages.learning.trainer import Recipe
from stages.nets import nets


def main(argv: list[str] | None = None) -> None:
    """Parse, load, train, write."""
    args = arguments.parser(__doc__, "cohort", "student", "teacher", "loss", seed={"type": int}).parse_args(argv)
    seed, threads, views, schedule, rates, start, given = params.load(
        "seed",
        "threads",
        "views",
        "train.student",
        f"rates.{args.loss}",
        f"students.{args.student}",
        f"losses.{args.loss}",
    )
    cohort = load_cohort(files.input(f"data/cohorts/{args.cohort}"))
    made_by = files.input(f"data/models/teacher/{args.cohort}/{args.teacher}")
    soft = soft_labels.read(files.input(f"data/soft_labels/{args.cohort}/{args.teacher}"), cohort, views, seed, made_by)
    plugins.load("models", args.student)
    plugins.load("models", args.teacher)
    loss = terms.with_settings(plugins.load("losses", args.loss), given)
    teacher = soft_labels.load_teacher(made_by, cohort) if loss.needs_features else None
    names = ("student", args.cohort, args.student, args.seed)
    recipe = Recipe(
        cohort, loss.terms, schedule.at(rates.of(args.cohort)), views, seed, names, soft, teacher, loss.adapter
    )
    with checkpoints.folder("-".join(["distilled", args.teacher, args.loss, *map(str, names)])) as kept:
        model, about, history = training.train(recipe, args.student, start, threads, kept / "last.pt")
        with files.output(
            f"data/models/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}"
        ) as made:
            nets.write(model, about, made)
        with files.output(
            f"data/curves/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}.csv"
        ) as made:
            training.write_history(history, made)


if __name__ == "__main__":
    main()
