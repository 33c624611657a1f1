"""Compute a teacher's logits of every fixed view of a cohort's training films.

Reads the cohort and the teacher; writes fp16 logits (views, films, findings) and what they belong to. Of a table of
probabilities, a film's logits serve every view. Stops when the teacher's findings or input size are not the cohort's,
and when a table lacks a film.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from stages.core import arguments, files, params, plugins
from stages.learning import soft_labels
from stages.learning.cohort import Part, load_cohort
from stages.nets import nets

BATCH = 128  # films a forward pass; the logits do not depend on it beyond float rounding


def films_of_view(part: Part, number: int, views: Any, seed: int) -> Iterator[np.ndarray]:
    """One view of every film, in batches of uint8 (batch, size_px, size_px)."""
    for start in range(0, len(part.rows), BATCH):
        stop = min(start + BATCH, len(part.rows))
        yield np.stack([part.view(index, number, views, seed) for index in range(start, stop)])


def main(argv: list[str] | None = None) -> None:
    """Parse, load, compute, write."""
    args = arguments.parser(__doc__, "cohort", "teacher").parse_args(argv)
    seed, threads, views = params.load("seed", "threads", "views")
    cohort = load_cohort(files.input(f"data/cohorts/{args.cohort}"))
    plugins.load("models", args.teacher)
    device = nets.fix(threads)
    teacher = files.input(f"data/models/teacher/{args.cohort}/{args.teacher}")
    if plugins.model_kind(args.teacher) == "table":
        of_film = soft_labels.of_table(teacher, cohort)
        logits = np.broadcast_to(of_film, (views.count, *of_film.shape))
    else:
        model = soft_labels.load_teacher(teacher, cohort).to(device)
        parts = [films_of_view(cohort.train, number, views, seed) for number in range(views.count)]
        logits = np.stack([nets.logits(model, films, device) for films in parts])
    with files.output(f"data/soft_labels/{args.cohort}/{args.teacher}") as made:
        soft_labels.write(logits, cohort, views, seed, made, teacher)


if __name__ == "__main__":
    main()
