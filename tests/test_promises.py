"""What a new plug-in gets wrong is told before any work, in a line that names its file, the fault and the way out."""

import copy
import importlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from stages.core import findings, params, plugins
from stages.pipeline import check, promises

ROOT = Path(__file__).parent.parent
Lay = Callable[[str, str, str], Any]
LOSS = (ROOT / "stages/losses/sigmoid_kd.py").read_text(encoding="utf-8")
DATASET = (ROOT / "stages/datasets/chestxray14.py").read_text(encoding="utf-8")
EXPLAINER = (ROOT / "stages/explainers/grad_cam.py").read_text(encoding="utf-8")


@pytest.fixture
def lay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lay]:
    """Lay a plug-in's file beside those that ship, and give the params that name it."""
    for kind in plugins.KINDS:
        plugins.load_all(kind, plugins.names(kind))
        shutil.copytree(ROOT / "stages" / kind, tmp_path / "stages" / kind)
        package = importlib.import_module(f"stages.{kind}")
        monkeypatch.setattr(package, "__path__", [str(tmp_path / "stages" / kind)])
    monkeypatch.setattr(plugins, "STAGES", tmp_path / "stages")
    laid = []

    def write(kind: str, name: str, text: str) -> Any:
        (tmp_path / "stages" / kind / f"{name}.py").write_bytes(text.encode("utf-8", "surrogateescape"))
        importlib.invalidate_caches()
        laid.append(f"stages.{kind}.{name}")
        return naming(kind, name)

    yield write
    for name in laid:
        sys.modules.pop(name, None)


def naming(kind: str, name: str) -> Any:
    """The committed params, with a plug-in named beside those that are."""
    values = copy.deepcopy(params.read(ROOT / "params.yaml"))
    if kind == "losses":
        values["losses"][name] = {"alpha": 0.1, "temperature": 2.0}
        values["rates"][name] = dict(values["rates"]["twin"])
    elif kind == "models":
        values["teachers"][name] = dict(values["teachers"]["resnet18"])
    elif kind == "explainers":
        values["explain"]["explainers"] = [name]
    else:
        values["datasets"][name] = dict(values["datasets"]["chestxray14"], root="films")
        values["policies"][name] = values["policies"]["chestxray14"]
    return values


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("losses", LOSS),
        ("losses", LOSS.replace('"logits"', '"features"')),
        ("models", 'ID = "resnet10t"\n'),
        ("models", 'MEMBERS = ("resnet10t", "resnet10t")\n'),
        ("explainers", EXPLAINER),
        ("datasets", DATASET),
    ],
)
def test_a_sound_plug_in_of_another_name_passes(lay: Lay, kind: str, text: str) -> None:
    check.everything(lay(kind, "another", text))


def without(text: str, name: str) -> str:
    """A file without one of its definitions, under another name."""
    assert name in text
    return text.replace(name, f"former_{name}")


MISTAKES = {  # what a beginner does -> kind, file, what the line says
    "a loss without NEEDS": ("losses", without(LOSS, "NEEDS"), 'NEEDS must be "logits" or "features", and is missing'),
    "a loss that needs what there is not": (
        "losses",
        LOSS.replace('"logits"', '"logit"'),
        'NEEDS must be "logits" or "features", got \'logit\'',
    ),
    "a loss without terms": ("losses", without(LOSS, "terms"), "defines no function terms(given, settings): write it"),
    "a loss whose terms take one argument": (
        "losses",
        LOSS.replace("given: Signals, settings: Settings", "given: Signals"),
        "must define terms(given, settings), got one that cannot be called so",
    ),
    "a loss without Settings": (
        "losses",
        LOSS.replace("Settings", "Options"),
        "defines no Settings: write a pydantic class",
    ),
    "a loss whose settings are no pydantic class": (
        "losses",
        LOSS.replace("Settings(BaseModel)", "Settings(dict)"),
        "defines no Settings: write a pydantic class",
    ),
    "a loss that is no Python": ("losses", LOSS + "def (:\n", " is no Python: invalid syntax: mend it there"),
    "a loss that imports what is not installed": (
        "losses",
        "import no_such_library\n" + LOSS,
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_library' (line 1): mend it there",
    ),
    "a loss that fails when it is imported": (
        "losses",
        LOSS + "SCALE = 1 / 0\n",
        "cannot be imported: ZeroDivisionError: division by zero (line ",
    ),
    "a loss that imports another loss": (
        "losses",
        "from stages.losses import paper\n" + LOSS,
        "line 1 imports stages.losses: of the project a plug-in of losses may import stages/core, stages/nets, "
        "stages/learning alone",
    ),
    "a loss that imports a stage": (
        "losses",
        "import stages.distill\n" + LOSS,
        "line 1 imports stages.distill: of the project a plug-in of losses may import",
    ),
    "a loss that imports its neighbour by a dot": (
        "losses",
        "from . import paper\n" + LOSS,
        "line 1 imports stages (by a dot): of the project a plug-in of losses may import",
    ),
    "a model that timm does not know": (
        "models",
        'ID = "resnet_18"\n',
        "timm knows no model 'resnet_18', did you mean",
    ),
    "a model without an id": (
        "models",
        'NAME = "resnet18"\n',
        "must define exactly one of ID, MEMBERS, CLIP, as a literal at the top level, found none",
    ),
    "an ensemble of one": ("models", 'MEMBERS = ("resnet18",)\n', "MEMBERS must be a tuple of two names or more"),
    "an explainer under another function's name": (
        "explainers",
        without(EXPLAINER, "maps("),
        "defines no function maps(model, images, outputs, max_stride): write it",
    ),
    "a loss that returns nothing": (
        "losses",
        LOSS.replace("    return softened", "    softened"),
        "terms must return a dict of name -> scalar tensor, got NoneType",
    ),
    "a loss that returns one number": (
        "losses",
        LOSS.replace("temperature)\n", 'temperature)["kd"]\n'),
        "terms must return a dict of name -> scalar tensor, got Tensor",
    ),
    "a loss without a task": (
        "losses",
        LOSS.replace(
            "    return softened(given, settings.alpha, settings.temperature)", '    return {"kd": given.student.sum()}'
        ),
        "terms must return the hard labels' term as 'task', got 'kd'",
    ),
    "a loss that names what there is not": (
        "losses",
        LOSS.replace("return softened(given,", "return softened(given.batch,"),
        "terms fail on a small batch: AttributeError: 'Signals' object has no attribute 'batch' (line ",
    ),
    "a loss that ends the program": (
        "losses",
        LOSS + "raise SystemExit\n",
        "cannot be imported: SystemExit: (line ",
    ),
    "a loss that is no UTF-8": ("losses", LOSS + "# \udce9\n", " is no text in UTF-8 (byte "),
    "a model that is two things": (
        "models",
        'ID = "resnet18"\nMEMBERS = ("resnet18", "resnet18")\n',
        "must define exactly one of ID, MEMBERS, CLIP, as a literal at the top level, found 2",
    ),
    "an explainer that is a class": (
        "explainers",
        "class maps:\n    pass\n",
        "defines no function maps(model, images, outputs, max_stride): write it",
    ),
    "an explainer with its arguments in another order": (
        "explainers",
        EXPLAINER.replace("model: nn.Module, images: Tensor,", "images: Tensor, model: nn.Module,"),
        "in this order, got maps(images, model, outputs, max_stride)",
    ),
    "an explainer that takes no stride": (
        "explainers",
        EXPLAINER.replace(", max_stride: int) -> np.ndarray", ") -> np.ndarray"),
        "must define maps(model, images, outputs, max_stride), got one that cannot be called so",
    ),
    "a data set without harmonize": (
        "datasets",
        without(DATASET, "harmonize("),
        "defines no function harmonize(tables): write it",
    ),
    "a data set without image_key": (
        "datasets",
        without(DATASET, "image_key("),
        "defines no function image_key(name): write it",
    ),
    "a data set with a finding that is not in the table": (
        "datasets",
        DATASET + 'TERMS["Cough"] = ("cough",)\n',
        "TERMS has 'Cough', which is no finding of stages/findings.csv: mend the name, or add a line there",
    ),
    "a data set whose term is a text": (
        "datasets",
        DATASET + 'TERMS["Mass"] = "mass"\n',
        "TERMS['Mass'] must be a tuple of terms, e.g. ('mass',), got 'mass'",
    ),
    "a data set whose column is of no kind": (
        "datasets",
        DATASET + 'TABLES[ENTRIES]["Patient Age"] = "int"\n',
        'must be a dict of column -> "text" or "number"',
    ),
    "a data set without a licence": ("datasets", without(DATASET, "LICENCE"), "LICENCE must be a text, got None"),
    "a data set whose archives are a text": (
        "datasets",
        DATASET + 'ARCHIVES = "images.zip"\n',
        "ARCHIVES must be a tuple of patterns",
    ),
    "a data set with a mean of a name that is taken": (
        "datasets",
        DATASET + 'MEANS = {"all": ("Mass",)}\n',
        "MEANS names a mean 'all', which every data set has, or like one per study: give it another name",
    ),
    "a data set without ages": ("datasets", without(DATASET, "AGES"), "AGES must be (lowest, highest) in years"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_plug_in_is_told_in_one_line(lay: Lay, mistake: str) -> None:
    kind, text, message = MISTAKES[mistake]
    values = lay(kind, "mistaken", text)
    with pytest.raises(params.ParamsError) as caught:
        check.everything(values)
    told = [line for line in str(caught.value).splitlines() if message in line]
    assert len(told) == 1, str(caught.value)
    assert f"stages/{kind}/mistaken.py" in told[0]


@pytest.mark.parametrize("name", ["json", "numpy", "timm"])
def test_a_plug_in_named_like_a_library_is_refused(lay: Lay, name: str) -> None:
    with pytest.raises(params.ParamsError, match=f"stages/losses/{name}.py: is named like the library {name}: give it"):
        check.everything(lay("losses", name, LOSS))


def test_a_name_with_a_dash_is_refused_with_what_dvc_can_address(lay: Lay) -> None:
    with pytest.raises(params.ParamsError, match=r"losses.a-loss: names match \[a-z0-9_\]\+"):
        check.everything(lay("losses", "a-loss", LOSS))


def test_an_explainer_that_is_not_there_is_refused() -> None:
    values = naming("explainers", "grad_cm")
    with pytest.raises(params.ParamsError, match=r"explain.explainers: must be one of .*grad_cam.*, got 'grad_cm'"):
        check.everything(values)


def test_a_folder_beside_a_plug_in_is_refused(lay: Lay) -> None:
    values = lay("losses", "mine", LOSS)
    (plugins.STAGES / "losses/mine").mkdir()
    with pytest.raises(params.ParamsError, match=r"losses/mine.py: stands beside a folder mine, which hides it"):
        check.everything(values)


def test_a_name_that_yaml_reads_as_a_number_is_refused() -> None:
    values = naming("losses", "another")
    values["losses"][123] = values["losses"].pop("another")
    with pytest.raises(params.ParamsError, match=r"losses.123"):
        check.everything(values)


def test_a_broken_table_of_findings_is_refused_with_its_columns(tmp_path: Path) -> None:
    for text in ("", "name,title\nMass,Mass\n", "name,title,cui,synonyms\nMass,Mass\n"):
        (tmp_path / "findings.csv").write_text(text)
        with pytest.raises(
            ValueError, match=r"findings.csv must have the columns name,title,cui,synonyms in each line"
        ):
            findings.vocabulary(tmp_path / "findings.csv")


def test_faults_of_several_plug_ins_and_of_keys_come_in_one_message(lay: Lay) -> None:
    lay("models", "mistaken", 'ID = "no_such_net"\n')
    values = lay("losses", "mistaken", without(LOSS, "NEEDS"))
    values["teachers"]["mistaken"] = dict(values["teachers"]["resnet18"])
    values["losses"]["paper"]["reduction"] = "median"
    values["train"]["student"]["momentum"] = "high"
    with pytest.raises(params.ParamsError) as caught:
        check.everything(values)
    message = str(caught.value)
    assert "4 fault(s)" in message
    parts = (
        "losses/mistaken.py: NEEDS",
        "models/mistaken.py: timm knows no",
        "losses.paper.reduction",
        "student.momentum",
    )
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", plugins.names("losses"))
def test_every_loss_passes_its_trial_with_the_settings_of_its_docstring(name: str) -> None:
    entry = YAML(typ="safe").load(str(plugins.load("losses", name).__doc__).split("In params.yaml:\n")[1])
    assert promises.of_plugin("losses", name, {"losses": entry}) == []


def test_every_plug_in_that_ships_keeps_its_promises() -> None:
    values = copy.deepcopy(params.read(ROOT / "params.yaml"))
    for kind in plugins.KINDS:
        for name in plugins.names(kind):
            assert promises.of_plugin(kind, name, values | {"losses": {name: None}, "datasets": {name: None}}) == []
