"""`dvc.yaml` declares what the code reads and writes, entry by entry and cell by cell; the check itself is checked."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx
import pytest
import wiring
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from ruamel.yaml import YAML

FILES = ("dvc.yaml", "params.yaml", ".dvc/config", ".dvcignore")


def declared(folder: Path) -> dict[str, tuple[str, wiring.Wiring]]:
    """Cell -> (command, what dvc.yaml declares), as DVC itself expands it."""
    found = {}
    for stage in Repo(str(folder)).index.stages:
        keys = {key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params}
        deps = {dep.def_path for dep in stage.deps if not isinstance(dep, ParamsDependency)}
        found[stage.addressing.rsplit(":", 1)[-1]] = (
            stage.cmd,
            wiring.Wiring(deps, keys, {out.def_path for out in stage.outs}),
        )
    return found


def differences(folder: Path) -> list[str]:
    """Every difference between code and dvc.yaml, prefixed by its cell."""
    found = []
    for name, (cmd, given) in declared(folder).items():
        module, args = wiring.command(cmd)
        found += [f"{name}: {difference}" for difference in wiring.expected(module, args).differences(given)]
    return found


def checkout(target: Path, preset: Path | None = None) -> Path:
    """The files that DVC needs to expand dvc.yaml, in another folder."""
    for name in FILES:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(wiring.ROOT / name, place)
    (target / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    if preset:
        shutil.copyfile(preset, target / "params.yaml")
    return target


def test_dvc_yaml_declares_exactly_what_the_code_uses(tmp_path: Path) -> None:
    assert differences(checkout(tmp_path)) == []


@pytest.mark.parametrize("preset", sorted((wiring.ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_same_holds_for_every_cell_of_a_preset(tmp_path: Path, preset: Path) -> None:
    assert differences(checkout(tmp_path, preset)) == []


def with_sum(folder: Path) -> Path:
    """Params that add a weighted sum of losses, in a checkout."""
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values["loss_sums"] = {"mix": {"sigmoid_kd": 1.0, "paper": 0.5}}
    yaml.dump(values, folder / "params.yaml")
    return folder


def test_the_same_holds_for_a_weighted_sum_of_losses(tmp_path: Path) -> None:
    folder = with_sum(checkout(tmp_path))
    cells = {name for name in declared(folder) if "mix" in name}
    assert cells == {f"{stage}@joint-eeea_net_c2-resnet18-mix-0" for stage in ("distill_sum", "predict_sum")}
    assert differences(folder) == []


def test_a_sum_alone_can_be_the_headline(tmp_path: Path) -> None:
    """Where there is one cohort: what export and explain read is what the sum's entries make."""
    folder = with_sum(checkout(tmp_path))
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values["cohorts"] = {"joint": values["cohorts"]["joint"]}
    values["also_distill"] = {"cohorts": [], "losses": []}
    values["headline"]["loss"] = "mix"
    yaml.dump(values, folder / "params.yaml")
    assert differences(folder) == []
    graph = Repo(str(folder)).index.graph
    assert {stage.name for stage in graph if graph.in_degree(stage) == 0} == {"report"}
    reads = {stage.name.split("@")[0]: {other.name.split("@")[0] for other in graph[stage]} for stage in graph}
    assert "distill_sum" in reads["export"] & reads["explain"]


def test_the_stages_form_one_graph_from_phantom_to_report() -> None:
    graph = Repo(str(wiring.ROOT)).index.graph  # an edge leads from a stage to what it depends on
    assert networkx.is_weakly_connected(graph)
    sources = {stage.addressing.split("@")[0] for stage in graph if graph.out_degree(stage) == 0}
    ends = {stage.addressing for stage in graph if graph.in_degree(stage) == 0}
    assert sources == {"phantom", "profile_teacher", "profile_student"}
    assert ends == {"report"}


def lines(entry: Any) -> list[tuple[str, int]]:
    """(deps or params, position): every line of a dvc.yaml entry that could be forgotten."""
    body = entry.get("do", entry)
    return [(kind, position) for kind in ("deps", "params") for position in range(len(body.get(kind, [])))]


def test_a_dep_or_param_taken_out_of_any_entry_is_named(tmp_path: Path) -> None:
    """The test of the test: round n takes line n out of every entry, and each entry must be told of its own line."""
    stages = YAML(typ="safe").load(wiring.ROOT / "dvc.yaml")["stages"]
    yaml = YAML()
    for number in range(max(len(lines(entry)) for entry in stages.values())):
        document = yaml.load(wiring.ROOT / "dvc.yaml")
        taken = {}
        for name, entry in document["stages"].items():
            if number < len(lines(entry)):
                kind, position = lines(entry)[number]
                taken[name] = (kind, entry.get("do", entry)[kind].pop(position))
        folder = with_sum(checkout(tmp_path / str(number)))
        yaml.dump(document, folder / "dvc.yaml")
        found = differences(folder)
        for name, (kind, line) in taken.items():
            stem, _, rest = line.partition("${")
            named = [text for text in found if text.split("@")[0].split(":")[0] == name]
            assert any(text.split(": ", 1)[1].startswith(f"{kind}: {stem}") for text in named), (
                name,
                line,
                rest,
                named,
            )


def test_a_superfluous_dep_is_named(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    yaml = YAML()
    document = yaml.load(folder / "dvc.yaml")
    document["stages"]["report"]["deps"].append("stages/core/training.py")
    yaml.dump(document, folder / "dvc.yaml")
    assert differences(folder) == ["report: deps: stages/core/training.py is declared but not used"]


def test_an_import_added_to_a_plug_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in may import only what its stage imports anyway: nothing else can be in `deps` for it alone."""
    original = wiring.imports

    def with_one_more(path: Path) -> set[str]:
        extra = {"stages.core.lock"} if path.stem == "sigmoid_kd" else set()
        return original(path) | extra

    monkeypatch.setattr(wiring, "imports", with_one_more)
    wiring.closure.cache_clear()
    found = differences(checkout(tmp_path))
    wiring.closure.cache_clear()
    assert found
    assert all("sigmoid_kd" in text and text.endswith("stages/core/lock.py is used but not declared") for text in found)


def test_stages_without_torch_import_none() -> None:
    """Start-up is half a second instead of five."""
    light = ["phantom", "download", "harmonize", "ingest", "describe", "assemble", "evaluate", "report"]
    code = "; ".join(f"import stages.{name}" for name in light) + "; import sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=wiring.ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


PACKAGES = ("phantom", "ingest")  # stages of several files


def test_package_files_hold_no_code_that_deps_would_miss() -> None:
    """`__init__.py` files are not listed in dvc.yaml unless they are a stage."""
    with_code = [path for path in (wiring.ROOT / "stages").rglob("__init__.py") if not wiring.is_empty(path)]
    assert set(with_code) <= {wiring.ROOT / f"stages/{name}/__init__.py" for name in PACKAGES}


@pytest.mark.parametrize("name", PACKAGES)
def test_a_stage_of_several_files_runs_by_its_name_too(name: str) -> None:
    command = [sys.executable, "-m", f"stages.{name}", "--help"]
    done = subprocess.run(command, cwd=wiring.ROOT, capture_output=True, text=True, check=True)
    assert "--dataset" in done.stdout
