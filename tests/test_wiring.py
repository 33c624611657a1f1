"""`dvc.yaml` declares what the code reads and writes, entry by entry and cell by cell; the check itself is checked."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx
import pytest
import wiring
from dvc.dependency.param import ParamsDependency
from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.core import params, plugins
from stages.pipeline import pinning
from stages.pipeline.preset import merged_text

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
    found, values = [], params.read(folder / "params.yaml")
    for name, (cmd, given) in declared(folder).items():
        module, args = wiring.command(cmd, values)
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
        (target / "params.yaml").write_text(merged_text(preset, wiring.ROOT / "params.yaml"))
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
    values["losses"]["sigmoid_kd"] = {"alpha": 0.1, "temperature": 2.0}
    values["loss_sums"] = {"mix": {"sigmoid_kd": 1.0, "paper": 0.5}}
    values["rates"] |= {name: {"default": 0.4, "per_cohort": {}} for name in ("sigmoid_kd", "mix")}
    yaml.dump(values, folder / "params.yaml")
    return folder


def test_the_same_holds_for_a_weighted_sum_of_losses(tmp_path: Path) -> None:
    folder = with_sum(checkout(tmp_path))
    cells = {name for name in declared(folder) if "mix" in name}
    stages = ("distill_sum", "predict_sum")
    assert cells == {f"{stage}@joint-eeea_net_c2-resnet18-mix-{seed}" for stage in stages for seed in (0, 1, 2)}
    assert differences(folder) == []


def test_a_sum_alone_can_be_the_headline(tmp_path: Path) -> None:
    """What export and explain read is what the sum's entries make."""
    folder = with_sum(checkout(tmp_path))
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values["headline"]["loss"] = "mix"
    yaml.dump(values, folder / "params.yaml")
    assert differences(folder) == []
    graph = Repo(str(folder)).index.graph
    assert {stage.name for stage in graph if graph.in_degree(stage) == 0} == {"report"}
    reads = {stage.name.split("@")[0]: {other.name.split("@")[0] for other in graph[stage]} for stage in graph}
    assert "distill_sum" in reads["export"] & reads["explain"]


HOSTILE = "x' $(touch hit) `touch hit` ; touch hit \" & touch hit #"


def renamed(key: str, old: str) -> Any:
    """Put a hostile name for one of a mapping's."""

    def change(values: Any) -> None:
        values[key][HOSTILE] = values[key].pop(old)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["datasets"]["chexpert"].update(root=HOSTILE),
        lambda values: values["headline"].update(cohort=HOSTILE),
        lambda values: values["headline"].update(seed=HOSTILE),
        lambda values: values["explain"].update(explainers=[HOSTILE]),
        lambda values: values.update(seeds=[HOSTILE]),
        *(renamed(group, "chexpert") for group in ("datasets", "phantoms")),
        renamed("cohorts", "joint"),
        renamed("teachers", "resnet18"),
        renamed("students", "eeea_net_c2"),
        renamed("losses", "paper"),
        renamed("loss_sums", "mix"),
    ],
)
def test_no_value_of_params_reaches_a_shell_even_if_nothing_checks_them(tmp_path: Path, change: Any) -> None:
    """What a plain `dvc repro` would hand to bash, of stages whose deps can be there: files of that name are not."""
    folder = with_sum(checkout(tmp_path))
    (folder / HOSTILE).mkdir()
    (folder / "bin").mkdir()
    (folder / "bin/python").write_text("#!/bin/sh\n")
    (folder / "bin/python").chmod(0o755)
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    change(values)
    yaml.dump(values, folder / "params.yaml")
    able = 0
    for cmd, given in declared(folder).values():
        if not any(HOSTILE in dep and not (folder / dep).exists() for dep in given.deps):
            able += 1
            path = {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
            subprocess.run(["bash", "-c", cmd], cwd=folder, env=path, capture_output=True, check=True)
    assert able > 10
    assert not (folder / "hit").exists()


def test_the_stages_form_one_graph_from_phantom_to_report() -> None:
    graph = Repo(str(wiring.ROOT)).index.graph  # an edge leads from a stage to what it depends on
    assert networkx.is_weakly_connected(graph)
    sources = {stage.addressing.split("@")[0] for stage in graph if graph.out_degree(stage) == 0}
    ends = {stage.addressing for stage in graph if graph.in_degree(stage) == 0}
    assert sources == {"environment"}
    assert ends == {"report"}


def test_environments_cover_every_package_that_a_stage_computes_with(tmp_path: Path) -> None:
    uncovered = {}
    for cmd, given in declared(checkout(tmp_path)).values():
        module = wiring.command(cmd)[0]
        plugged = tuple(f"stages/{kind}/" for kind in plugins.KINDS)
        code = {wiring.ROOT / dep for dep in given.deps if dep.startswith(plugged)} | wiring.closure(module)
        groups = {Path(dep).stem for dep in given.deps if Path(dep).parent == pinning.FOLDER}
        uncovered[module] = wiring.packages(code) - wiring.covered(groups)
    copying = {module: uncovered.pop(module) for module in wiring.COPYING}
    assert not any(uncovered.values()), uncovered
    assert "pandas" in copying["stages.download"]  # the control: without an environment packages are named


def test_a_dep_or_param_taken_out_of_any_entry_is_named(tmp_path: Path) -> None:
    """The test of the test: each line of a cell of every entry is taken out, and must be named."""
    folder = with_sum(checkout(tmp_path))
    values, entries = params.read(folder / "params.yaml"), set[str]()
    for name, (cmd, given) in declared(folder).items():
        if (entry := name.split("@")[0]) in entries:
            continue
        entries.add(entry)
        needed = wiring.expected(*wiring.command(cmd, values))
        assert needed.differences(given) == []
        for kind in ("deps", "params"):
            for line in getattr(given, kind):
                without = replace(given, **{kind: getattr(given, kind) - {line}})
                assert any(text.startswith(f"{kind}: {line}") for text in needed.differences(without)), (name, line)
    assert len(entries) > 25


def test_a_superfluous_dep_is_named(tmp_path: Path) -> None:
    folder = checkout(tmp_path)
    yaml = YAML()
    document = yaml.load(folder / "dvc.yaml")
    document["stages"]["report"]["deps"].append("stages/learning/training.py")
    yaml.dump(document, folder / "dvc.yaml")
    assert differences(folder) == ["report: deps: stages/learning/training.py is declared but not used"]


def test_an_import_added_to_a_plug_in_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plug-in may import only what its stage imports anyway: nothing else can be in `deps` for it alone."""
    original = wiring.imports

    def with_one_more(path: Path) -> set[str]:
        extra = {"stages.sources.archives"} if path.stem == "paper" else set()
        return original(path) | extra

    monkeypatch.setattr(wiring, "imports", with_one_more)
    wiring.closure.cache_clear()
    found = differences(checkout(tmp_path))
    wiring.closure.cache_clear()
    assert found
    assert all(
        "paper" in text and text.endswith("stages/sources/archives.py is used but not declared") for text in found
    )


def test_stages_without_torch_import_none() -> None:
    """Start-up is half a second instead of five."""
    light = ["phantom", "download", "harmonize", "ingest", "describe", "assemble", "choice", "evaluate", "compare"]
    code = (
        "; ".join(f"import stages.{name}" for name in (*light, "report"))
        + "; import sys; print('torch' in sys.modules)"
    )
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


def rooms() -> list[Path]:
    """The files of all rooms."""
    return [path for room in wiring.ROOMS for path in sorted((wiring.ROOT / "stages" / room).glob("*.py"))]


def imported_files(path: Path) -> set[Path]:
    """The project files that a file imports."""
    found = {wiring.source(module) for module in wiring.imports(path)}
    return {other for other in found if other and other != path and not wiring.is_empty(other)}


def test_rooms_import_downwards_only() -> None:
    """From a room's own files and those of rooms before it in `wiring.ROOMS`; never from a stage or a plug-in."""
    upwards = []
    for path in rooms():
        place = wiring.ROOMS.index(path.parent.name)
        below = [wiring.ROOT / "stages" / room for room in wiring.ROOMS[: place + 1]]
        upwards += [
            f"{path.relative_to(wiring.ROOT)} imports {other.relative_to(wiring.ROOT)}"
            for other in imported_files(path)
            if other.parent not in below
        ]
    assert upwards == []


def test_no_file_imports_itself_by_way_of_others() -> None:
    everything = [path for path in (wiring.ROOT / "stages").rglob("*.py") if not wiring.is_empty(path)]
    graph = networkx.DiGraph((path, other) for path in everything for other in imported_files(path))
    assert graph.number_of_edges() > len(everything)
    assert [*networkx.simple_cycles(graph)] == []


def test_no_two_files_of_code_bear_one_name_but_plug_ins_and_what_they_are_of() -> None:
    """`models.py` beside a folder `models` sent readers to the wrong one."""
    named = [path.stem for path in rooms() if path.stem != "__init__"]
    folders = {path.name for path in (wiring.ROOT / "stages").iterdir() if path.is_dir()} - set(wiring.ROOMS)
    stages = {path.stem for path in (wiring.ROOT / "stages").glob("*.py")}
    assert len(set(named)) == len(named)
    assert set(named).isdisjoint(folders | stages)


def test_rooms_in_deps_cost_little(tmp_path: Path) -> None:
    """Beside exact lists of files, an edit makes at most 1.15 times as many cells stale, on average over the files.

    A folder that a stage reads as a whole is as many files as lie in it.
    """

    def number(deps: set[str]) -> int:
        return sum(len(wiring.members(path) or {path}) for path in deps if path.startswith("stages/"))

    exact, declared_files = 0, 0
    for cmd, given in declared(checkout(tmp_path)).values():
        exact += number(wiring.expected(*wiring.command(cmd)).deps)
        declared_files += number(given.deps)
    assert exact < declared_files <= 1.15 * exact


def test_a_new_finding_makes_nothing_stale_that_is_drawn_decoded_or_trained(tmp_path: Path) -> None:
    cells = declared(checkout(tmp_path)).items()
    readers = {name.split("@")[0] for name, (_, given) in cells if "stages/findings.csv" in given.deps}
    assert readers == {"atlas", "describe", "export", "harmonize", "report"}
    assert not any("stages" in given.deps for _, (_, given) in cells)
