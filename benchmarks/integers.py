"""Can fine-tuning make the student compute in whole numbers within its limits? `make integers` tries it.

Reads what the pipeline made. The part of data/export/student.onnx that `int8_static` computes in whole numbers is run
in PyTorch with weights and activations rounded as there, and its gradient goes through the rounding as if it were not
there (the straight-through estimator, Bengio et al., arXiv 1308.3432). It is trained on as a student is, by the run's
own loss with the teacher's soft labels, or towards the logits of the student itself before rounding. The tuned weights
are then put back and quantised like any others, and onnxruntime's answers are compared with student.onnx's as the stage
`agree` does, on validation films; the nearest of them on test films too. Writes reports/integers.md.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
import torch.nn.functional as F  # noqa: N812 - everybody's name for it
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from torch import Tensor, nn

from stages import agree, export, soft_label
from stages.core import files, params, plugins
from stages.device import gates, running, variants
from stages.judging import cells, evaluation
from stages.learning import soft_labels, terms, trainer
from stages.learning.cohort import Cohort, load_cohort
from stages.learning.objectives import Signals
from stages.nets import nets
from stages.pages import charts
from stages.pipeline import by_hand
from stages.sources.images import Images

RESULT = Path("reports/integers.md")
BETA = 0.02  # of a logit: a third of what rounding moves one by, where the loss towards the student's own turns linear
CLIP_NORM = 5.0
UNSIGNED = 255

Values = dict[str, Tensor]
Operator = Callable[[list[Tensor], dict[str, Any]], Tensor]


def _convolution(given: list[Tensor], about: dict[str, Any]) -> Tensor:
    top, left, bottom, right = about.get("pads", [0, 0, 0, 0])
    padded = F.pad(given[0], (left, right, top, bottom))
    bias = given[2] if len(given) > 2 else None
    stride, dilation, groups = (about[name] for name in ("strides", "dilations", "group"))
    made: Tensor = F.conv2d(padded, given[1], bias, stride, 0, dilation, groups)
    return made


def _hard_sigmoid(given: list[Tensor], about: dict[str, Any]) -> Tensor:
    return torch.clamp(given[0] * about.get("alpha", 0.2) + about.get("beta", 0.5), 0, 1)


def _mean(given: list[Tensor], about: dict[str, Any]) -> Tensor:
    made: Tensor = given[0].mean(tuple(given[1].tolist()), keepdim=bool(about.get("keepdims", 1)))
    return made


OPERATORS: dict[str, Operator] = {
    "Add": lambda given, _: given[0] + given[1],
    "Conv": _convolution,
    "Gather": lambda given, _: given[0][given[1]],
    "Gemm": lambda given, _: F.linear(*given),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": lambda given, _: F.hardswish(given[0]),
    "Mul": lambda given, _: given[0] * given[1],
    "ReduceMean": _mean,
    "Relu": lambda given, _: F.relu(given[0]),
    "Reshape": lambda given, _: given[0].reshape(tuple(given[1].tolist())),
}


def rounded(x: Tensor, scale: Tensor | float, zero: int, low: int, high: int) -> Tensor:
    """`x` on a grid of `high - low + 1` steps of `scale`; its gradient is that of clamping alone."""
    steps = x / scale
    whole = steps + (torch.round(steps) - steps).detach() + zero
    return (whole.clamp(low, high) - zero) * scale


class Rounding(nn.Module):
    """The part of a graph that `int8_static` computes in whole numbers, for films (batch, 3, size_px, size_px).

    Attributes:
        is_rounded: whether it rounds; else it answers as the graph does.
    """

    def __init__(self, proto: onnx.ModelProto, steps: dict[str, tuple[float, int]]) -> None:
        """Of a graph.

        Args:
            proto: a graph of `stages.device.graphs`.
            steps: scale and zero point of each activation that is rounded, as `steps_of` reads them.
        """
        super().__init__()
        nodes = list(proto.graph.node)
        first = next(place for place, node in enumerate(nodes) if node.op_type == "Conv")
        last = max(place for place, node in enumerate(nodes) if node.op_type in variants.CHANNEL_AXIS)
        self.nodes, self.steps, self.is_rounded = nodes[first : last + 1], steps, True
        if unknown := {node.op_type for node in self.nodes} - OPERATORS.keys():
            raise ValueError(f"no operator here computes {', '.join(sorted(unknown))} of the student's graph")
        stored = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in proto.graph.initializer}
        used = {name for node in self.nodes for name in node.input if name in stored}
        trained = {name for node in self.nodes if node.op_type in variants.CHANNEL_AXIS for name in node.input[1:]}
        self.weights = {node.input[1] for node in self.nodes if node.op_type in variants.CHANNEL_AXIS}
        self.constants = {name: stored[name] for name in used - trained}
        self.names = sorted(trained)
        self.trained = nn.ParameterList([nn.Parameter(stored[name]) for name in self.names])

    def forward(self, films: Tensor) -> Tensor:
        """Logits (batch, finding)."""
        parameters = dict(zip(self.names, self.trained, strict=True))
        if self.is_rounded:
            parameters |= {name: self._weight(parameters[name]) for name in self.weights}
        logits: Tensor = torch.vmap(lambda film: self._one({**self.constants, **parameters}, film))(films)
        return logits

    def _one(self, values: Values, film: Tensor) -> Tensor:
        values[self.nodes[0].input[0]] = self._activation(self.nodes[0].input[0], film[None])
        for node in self.nodes:
            about = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            made = OPERATORS[node.op_type]([values[name] for name in node.input], about)
            values[node.output[0]] = self._activation(node.output[0], made)
        return values[self.nodes[-1].output[0]][0]

    def _weight(self, weight: Tensor) -> Tensor:
        largest = weight.detach().abs().amax(tuple(range(1, weight.ndim)), keepdim=True)
        levels = variants.STATIC_LEVELS
        return rounded(weight, (largest / levels).clamp_min(1e-12), 0, -levels, levels)

    def _activation(self, name: str, x: Tensor) -> Tensor:
        if not self.is_rounded or name not in self.steps:
            return x
        scale, zero = self.steps[name]
        return rounded(x, scale, zero, 0, UNSIGNED)

    def put_back(self, proto: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of the graph with these weights."""
        changed = onnx.ModelProto()
        changed.CopyFrom(proto)
        tuned = dict(zip(self.names, self.trained, strict=True))
        for one in changed.graph.initializer:
            if one.name in tuned:
                one.CopyFrom(numpy_helper.from_array(tuned[one.name].detach().numpy(), one.name))
        return changed


def steps_of(quantised: onnx.ModelProto) -> dict[str, tuple[float, int]]:
    """Activation -> scale and zero point, of a file of `int8_static`."""
    stored = {one.name: numpy_helper.to_array(one) for one in quantised.graph.initializer}
    nodes = [node for node in quantised.graph.node if node.op_type == "QuantizeLinear"]
    return {node.input[0]: (float(stored[node.input[1]]), int(stored[node.input[2]])) for node in nodes}


@dataclass(frozen=True)
class Tuning:
    """One way to fine-tune.

    Attributes:
        by: TEACHER or ITSELF.
        steps: of SGD.
        lr: peak learning rate.
    """

    by: str
    steps: int
    lr: float

    def __str__(self) -> str:
        return f"{self.steps} steps by {self.by}, rate {self.lr:g}"


AS_IS, TEACHER, ITSELF = "as it is", "the teacher's soft labels", "its own unrounded logits"
TUNINGS = (Tuning(TEACHER, 200, 1e-3), Tuning(ITSELF, 200, 1e-2), Tuning(ITSELF, 200, 1e-3), Tuning(ITSELF, 600, 1e-3))


def to_itself(given: Signals) -> Values:
    """The distance from the logits of the student before rounding, which stand in for a teacher's."""
    return {"task": F.smooth_l1_loss(given.student, given.teacher, beta=BETA)}


def tuned(start: Rounding, tuning: Tuning, recipe: trainer.Recipe, device: torch.device) -> Rounding:
    """Averaged weights after fine-tuning."""
    settings = recipe.settings.model_copy(
        update={"steps": tuning.steps, "lr": tuning.lr, "optimizer": "sgd", "evaluations": 1, "weight_decay": 0.0,
                "clip_norm": CLIP_NORM, "checkpoint_steps": tuning.steps}
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        training = trainer.Trainer(start, replace(recipe, settings=settings), device)
        made: Any = training.fit(Path(folder) / "last.pt")[0]
    return cast(Rounding, made)


@dataclass(frozen=True)
class Held:
    """Films of one split of a data set, and what student.onnx says of them.

    Attributes:
        name: of data set and split.
        films: their pixels.
        columns: the model's outputs that count there.
        tested: what `gates.compare` takes.
        logits: (film, counted output) of student.onnx.
    """

    name: str
    films: Images
    columns: list[int]
    tested: gates.Tested
    logits: NDArray[np.floating]

    def compared(self, proto: onnx.ModelProto, threads: int) -> dict[str, Any]:
        """A file beside student.onnx."""
        session = running.Session(proto.SerializeToString(), threads)
        return gates.compare(self.tested, self.logits, agree.answers(session, self.films)[:, self.columns])


def held_of(dataset: str, split: str, outputs: list[str], session: running.Session) -> Held:
    """The films of a split of a data set."""
    evaluated, evaluate, seed = params.load(f"datasets.{dataset}.findings", "evaluate", "seed")
    labels = files.read_table(files.input(f"data/labels/{dataset}.parquet"))
    chosen = files.read_json(files.input(f"reports/operating/{dataset}.json"))["findings"]
    rows, films = agree.films_of(labels, files.input(f"data/images/{dataset}"), split)
    asked = [name for name in evaluated if name in outputs]
    columns = [outputs.index(name) for name in asked]
    draw = partial(evaluation.draw, dataset=dataset, replicates=evaluate.replicates, seed=seed)
    tested = agree.tested_of(rows, asked, chosen, draw, evaluate.confidence)
    return Held(f"{dataset}, {split}", films, columns, tested, agree.answers(session, films)[:, columns])


def is_within(found: dict[str, Any], limits: Any) -> bool:
    """Whether `gates.require` passes it."""
    try:
        gates.require("int8_static", "", found, limits)
    except gates.GateError:
        return False
    return True


def row(what: str, name: str, found: dict[str, Any], limits: Any) -> str:
    """A row of Markdown of what `gates.compare` found."""
    lost = found["auroc"]
    return (
        f"| {what} | {name} | {found['mean_abs_difference']:.4f} | {lost['value']:+.4f} "
        f"({lost['low']:+.4f} to {lost['high']:+.4f}) | {found['flipped_mean']:.2%} | "
        f"{charts.number(found['lowest_spearman'])} | {'yes' if is_within(found, limits) else '**no**'} |"
    )


def recipes_of(headline: Any, net: nn.Module, cohort: Cohort, device: torch.device) -> dict[str, trainer.Recipe]:
    """What the student is tuned by -> what it learns from."""
    given, views, schedule, seed = params.load("losses", "views", "train.student", "seed")
    loss = terms.with_settings(plugins.load("losses", headline.loss), given[headline.loss])
    kept = files.input(f"data/soft_labels/{headline.cohort}/{headline.teacher}")
    films = [soft_label.films_of_view(cohort.train, number, views, seed) for number in range(views.count)]
    own = np.stack([nets.logits(net, of_view, device) for of_view in films]).astype(np.float16)
    by = {TEACHER: (loss.terms, soft_labels.read(kept, cohort, views, seed)), ITSELF: (to_itself, own)}
    return {
        name: trainer.Recipe(cohort, of_this, schedule.at(1e-3), views, seed, ("integers",), soft)
        for name, (of_this, soft) in by.items()
    }


def quantised_of(
    proto: onnx.ModelProto, films: variants.Films, recipes: dict[str, trainer.Recipe], device: torch.device
) -> dict[str, onnx.ModelProto]:
    """Each way of tuning -> the file that computes in whole numbers; `AS_IS` for none."""
    found = {AS_IS: variants.int8_static(proto, films)}
    steps = steps_of(found[AS_IS])
    for tuning in TUNINGS:
        made = tuned(Rounding(proto, steps), tuning, recipes[tuning.by], device)
        found[str(tuning)] = variants.int8_static(made.put_back(proto), films)
    return found


def main() -> None:
    """Tune, quantise, compare, write the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    settings, headline, datasets, seed, threads = params.load("export", "headline", "datasets", "seed", "threads")
    device = nets.fix(threads)
    plugins.load("models", headline.student)
    net, _ = nets.load_model(files.input(f"data/models/{cells.headline_model(headline, headline.cohort).id}"))
    folder = files.input(f"data/cohorts/{headline.cohort}")
    cohort = load_cohort(folder)
    proto = onnx.load(files.input("data/export/student.onnx"))
    rows = files.read_table(folder / "rows.parquet", ["dataset", "image", "split", "shard", "row"])
    picked = export.choose_films(rows, "train", settings.compared_films, ("export", seed, "train"))
    ranging = Images.of_rows(folder, picked).take(range(len(picked)))
    quantised = quantised_of(proto, ranging, recipes_of(headline, net, cohort, device), device)
    session = running.Session(proto.SerializeToString(), threads)
    here = [name for name in datasets if (rows["dataset"] == name).any()]
    val, test = ([held_of(name, split, cohort.findings, session) for name in here] for split in ("val", "test"))
    on_val = {what: [one.compared(made, threads) for one in val] for what, made in quantised.items()}
    far = {what: np.mean([one["mean_abs_difference"] for one in found]) for what, found in on_val.items()}
    best = min(far, key=lambda what: far[what])
    on_test = {what: [one.compared(quantised[what], threads) for one in test] for what in dict.fromkeys((AS_IS, best))}
    lines = heading(settings.limits)
    for held, of_split in ((val, on_val), (test, on_test)):
        for what, found in of_split.items():
            lines += [row(what, one.name, of_set, settings.limits) for one, of_set in zip(held, found, strict=True)]
    RESULT.write_text("\n".join([*lines, ""]), encoding="utf-8")
    by_hand.stamp("integers")
    print(RESULT)


def heading(limits: Any) -> list[str]:
    """The page's beginning."""
    return [
        "# The student in whole numbers, fine-tuned for it", "",
        "`int8_static` beside student.onnx, both in onnxruntime: mean difference of a logit, change of mean AUROC with "
        "its paired interval over patients, calls that change at the thresholds, lowest rank correlation of a finding. "
        f"Within `export.limits`: at most {limits.auroc:g} lost, the interval within {limits.interval:g} of 0, "
        f"{limits.flipped:.0%} of calls. All on validation films; on test films, as it is and the one whose logits "
        "were nearest on validation films. Made by `make integers`.", "",
        "| fine-tuning | films | logit | AUROC | calls | Spearman | within |",
        "|---|---|---:|---:|---:|---:|---|",
    ]  # fmt: skip


if __name__ == "__main__":
    main()
