"""The command lines of the stages: what an argument means is said once, here, whichever stage takes it."""

import argparse
from typing import Any

HELP = {
    "arch": "a model: the name of a file in stages/models",
    "cohort": "the films that a model learns from: a key of `cohorts` in params.yaml",
    "dataset": "a data set: a key of `datasets` in params.yaml and the name of a file in stages/datasets",
    "group": "stages whose results depend on the same packages: a key of GROUPS in stages/pipeline/pinning.py",
    "explainer": "how class maps are made: the name of a file in stages/explainers",
    "loss": "what the student learns from the teacher by: a key of `losses`, or of `loss_sums`, in params.yaml",
    "model": "a trained model: its folder under data/models, e.g. teacher/joint/resnet18",
    "role": "what the model is for; its costs are written to reports/profile/<role>",
    "root": "the folder with the data set's files as its owner ships them",
    "seed": "one of `seeds` in params.yaml",
    "student": "the model that learns: a key of `students` in params.yaml",
    "teacher": "the model that is learnt from: a key of `teachers` in params.yaml",
}


def parser(doc: str | None, *names: str, **special: dict[str, Any]) -> argparse.ArgumentParser:
    """A command line that needs each of some arguments.

    Args:
        doc: what `--help` says first, as it is written: a module's docstring.
        names: arguments that may be any word, without their dashes.
        special: arguments that may not, with what argparse is told of them, e.g. `seed={"type": int}`.
    """
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in (*names, *special):
        made.add_argument(f"--{name}", required=True, help=HELP[name], **special.get(name, {}))
    return made


def at_least_one(text: str) -> int:
    """The `type` of an argument that counts.

    Raises:
        argparse.ArgumentTypeError: it is no whole number, or below 1.
    """
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text}")
    return int(text)
