"""Test films of each finding that the student calls rightly and wrongly, with boxes and every headline model's map.

Reads what operate chose on validation films (reports/operating), the labels, films and boxes of every data set, the
headline's teacher, twin and distilled student and their predictions. Writes reports/atlas/<dataset>.json: of each
finding and outcome (true and false positives and negatives of the distilled student at its frozen threshold) films
drawn by seed, each with the calibrated probabilities of the models and a picture of its maps; and reports/gallery.png,
a film an outcome of the first data set with boxes. Findings without a threshold are left out with their reason.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from stages.core import arguments, files, findings, params, plugins
from stages.judging import calibration, cells, class_maps, evaluation, gallery
from stages.judging.class_maps import Model, Names, Plan
from stages.nets import nets

NO_CASE = "no test film of it has a known label"
NOTHING = "no test film of any finding that has a threshold has a known label"


@dataclass(frozen=True)
class Judged:
    """The test films of a data set, what models say of them, and what validation films chose.

    Attributes:
        films: labels, pixels and boxes.
        logits: kind of model -> a row an image (the index), a column a finding.
        chosen: what operate wrote of the data set's findings.
    """

    films: class_maps.Films
    logits: dict[str, pd.DataFrame]
    chosen: dict[str, Any]

    def of_student(self, key: str) -> dict[str, Any]:
        """Finding -> what validation films chose of the distilled student; findings without are left out."""
        about = {finding: found["models"]["distilled"][key] for finding, found in self.chosen.items()}
        return {finding: value for finding, value in about.items() if value is not None}

    def candidates(self) -> pd.DataFrame:
        """Every film and finding with its outcome."""
        return gallery.outcomes(self.films, self.logits["distilled"], self.of_student("threshold"))

    def boxed(self, candidates: pd.DataFrame) -> pd.DataFrame:
        """Those of findings that have boxes; all, if none has."""
        has_box = candidates["finding"].isin(self.films.boxes["finding"])
        return candidates[has_box] if has_box.any() else candidates

    def probabilities(self, rows: pd.DataFrame) -> dict[str, list[float | None]]:
        """Kind of model -> its calibrated probability of each row; None where it has no temperature."""
        found: dict[str, list[float | None]] = {}
        for kind, logits in self.logits.items():
            found[kind] = []
            for image, finding in zip(rows["image"], rows["finding"], strict=True):
                about, value = self.chosen[finding]["models"][kind], None
                if about["temperature"] is not None:
                    scale = calibration.Scale(about["temperature"], about["bias"])
                    value = float(scale.probability(logits.loc[image, finding]))
                found[kind].append(evaluation.rounded(value))
        return found


def atlas(judged: Judged, trained: dict[str, Model], plan: Plan, names: Names) -> dict[str, Any]:
    """The cases of a data set, for the report."""
    rows = gallery.pick_atlas(judged.candidates(), plan.settings.gallery_per_outcome, names)
    reasons = judged.of_student("reason")
    reasons |= {finding: NO_CASE for finding in judged.of_student("threshold") if finding not in set(rows["finding"])}
    listed = rows.to_dict("records")
    if listed:
        cases, stated = gallery.Cases(rows, judged.films, trained, plan), judged.probabilities(rows)
        for number, case in enumerate(listed):
            case["probabilities"] = {kind: stated[kind][number] for kind in trained}
            case["picture"] = cases.strip(number)
    return {"models": [*trained], "cases": listed, "reasons": reasons}


def draw(judged: dict[str, Judged], trained: dict[str, Model], plan: Plan, spoken: Mapping[str, str]) -> Figure:
    """The gallery of the first data set with boxes and cases, else of the first with cases."""
    candidates = {dataset: of_dataset.candidates() for dataset, of_dataset in judged.items()}
    usable = sorted(filter(lambda name: len(candidates[name]), judged), key=lambda name: judged[name].films.boxes.empty)
    if not usable:
        return gallery.note(NOTHING)
    dataset, of_first = usable[0], judged[usable[0]]
    boxed = of_first.boxed(candidates[dataset])
    rows = gallery.pick_gallery(boxed, plan.settings.gallery_per_outcome, ("gallery", plan.seed, dataset))
    stated = of_first.probabilities(rows)
    sides = [f"{row['outcome']}\n{spoken[row['finding']]}" for row in rows.to_dict("records")]
    below = [["p unknown" if value is None else f"p = {value:.2f}" for value in stated[kind]] for kind in trained]
    heading = (
        f"{dataset}, test films by outcome of the distilled student at its threshold, which validation films chose.\n"
        "Heat: class map of the row's finding over its own maximum. p: calibrated probability."
    )
    titles = ["film, drawn box", *(f"{name}\n{model.title}" for name, model in trained.items())]
    return gallery.Cases(rows, of_first.films, trained, plan).figure(titles, heading, sides, below)


def main(argv: list[str] | None = None) -> None:
    """Write reports/atlas and reports/gallery.png."""
    args = arguments.parser(__doc__, "cohort", "student", "teacher", "loss", "seed").parse_args(argv)
    settings, datasets, seed, threads = params.load("explain", "datasets", "seed", "threads")
    device = nets.fix(threads)
    plugins.load("models", args.teacher)
    plugins.load("models", args.student)
    explainers = plugins.load_all("explainers", settings.explainers)
    plan = Plan(explainers[settings.explainers[0]].maps, settings, 0, 0, seed)  # nothing is scored
    folders = {
        "teacher": files.input(f"data/models/teacher/{args.cohort}/{args.teacher}"),
        "twin": files.input(f"data/models/twin/{args.cohort}/{args.student}/{args.seed}"),
        "distilled": files.input(
            f"data/models/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}"
        ),
    }
    tables = {
        "teacher": files.input(f"data/predictions/teacher/{args.cohort}/{args.teacher}.parquet"),
        "twin": files.input(f"data/predictions/twin/{args.cohort}/{args.student}/{args.seed}.parquet"),
        "distilled": files.input(
            f"data/predictions/distilled/{args.cohort}/{args.student}/{args.teacher}/{args.loss}/{args.seed}.parquet"
        ),
    }
    operating = files.input("reports/operating")
    cells.require_declared(operating, "*.json", {f"{dataset}.json" for dataset in datasets})
    labels, shards, boxes = files.input("data/labels"), files.input("data/images"), files.input("data/boxes")
    titles = {"teacher": args.teacher, "twin": args.student, "distilled": f"{args.student}, {args.loss}"}
    left_out = class_maps.without_maps(args.teacher)
    trained = class_maps.load_models({kind: folders[kind] for kind in folders if kind not in left_out}, titles, device)
    films = class_maps.load_films(labels, shards, boxes, datasets, trained["distilled"].findings, plan)
    read, judged = {kind: files.read_table(path) for kind, path in tables.items()}, {}
    for dataset, of_dataset in films.items():
        about = files.read_json(operating / f"{dataset}.json")
        logits = {kind: evaluation.select(table, dataset, about["ids"][kind]) for kind, table in read.items()}
        judged[dataset] = Judged(of_dataset, logits, about["findings"])
    found = {
        dataset: atlas(of_dataset, trained, plan, ("atlas", seed, dataset)) for dataset, of_dataset in judged.items()
    }
    spoken = findings.vocabulary(files.input("stages/findings.csv")).titles
    picture = gallery.render(draw(judged, trained, plan, spoken), gallery.GALLERY_BYTES)
    with files.output("reports/atlas") as folder, files.output("reports/gallery.png") as path:
        folder.mkdir()
        for dataset, of_atlas in found.items():
            files.write_json(of_atlas, folder / f"{dataset}.json")
        path.write_bytes(picture)


if __name__ == "__main__":
    main()
