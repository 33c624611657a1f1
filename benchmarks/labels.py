"""The three whole real tables, as the torchxrayvision package carries them; and half a million rows."""

import time
import warnings
from functools import partial
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from benchmarks import measure
from stages import harmonize
from stages.core import findings, params, plugins
from stages.sources import raw

ROWS = 500_000
MAX_SECONDS, MAX_MB = 60, 4096
PACKED = {
    "chestxray14": "Data_Entry_2017_v2020.csv",
    "chexpert": "chexpert_train.csv",
    "padchest": "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv",
}
THEIRS = ("NIH_Dataset", "CheX_Dataset", "PC_Dataset")
BY_HASH = {"chestxray14": "patient_random", "chexpert": "patient_random", "padchest": "patient_hash"}


def read(name: str, plugin: ModuleType, max_mb: int) -> dict[str, pd.DataFrame]:
    """A data set's tables; of those that the package lacks (NIH's lists, CheXpert's valid.csv), the first rows."""
    package = metadata.distribution("torchxrayvision")  # not imported: that would count as our memory
    folder = Path(str(package.locate_file("torchxrayvision/data")))
    main = next(iter(plugin.TABLES))
    table = raw.table(folder, f"{PACKED[name]}.gz", "", plugin.TABLES[main], max_mb)
    tables = dict.fromkeys(plugin.TABLES, table.head(0)) | {main: table}
    if name == "chexpert":
        valid = table.head(1).assign(Path="CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg")
        valid.attrs = table.attrs
        tables["valid.csv"] = valid
    return tables


def choices(name: str, settings: Any) -> harmonize.Choices:
    """The default's, with a split that needs no list."""
    own = settings.datasets[name]
    return harmonize.Choices(BY_HASH[name], own.val_fraction, own.test_fraction, ["PA", "AP"], 1.0, films=None)


def ours(settings: Any) -> None:
    """Read, harmonize, split and check all three."""
    for name in PACKED:
        plugin = plugins.load("datasets", name)
        harmonize.harmonize(
            read(name, plugin, settings.max_table_mb), plugin, name, choices(name, settings), findings.vocabulary()
        )


def theirs() -> None:
    """Load all three as torchxrayvision does."""
    import torchxrayvision

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in THEIRS:
            getattr(torchxrayvision.datasets, name)(imgpath=".", views=["PA", "AP"], unique_patients=False)


def many_rows() -> None:
    """Harmonize half a million rows of PadChest, the slowest of the three; print seconds and peak MB."""
    settings, plugin = params.parse(params.read()), plugins.load("datasets", "padchest")
    (table,) = read("padchest", plugin, settings.max_table_mb).values()
    copies = -(-ROWS // len(table))
    parts = [
        table.assign(ImageID=f"{copy}_" + table["ImageID"], PatientID=f"{copy}_" + table["PatientID"])
        for copy in range(copies)
    ]
    rows = pd.concat(parts, ignore_index=True).head(ROWS)
    rows.attrs = table.attrs
    del parts, table
    start = time.perf_counter()
    harmonize.harmonize(
        {PACKED["padchest"]: rows}, plugin, "padchest", choices("padchest", settings), findings.vocabulary()
    )
    print(time.perf_counter() - start)
    print(measure.own_peak_mb())


def run() -> list[measure.Line]:
    """The lines on labels."""
    settings = params.parse(params.read())
    timed = measure.in_turn(partial(ours, settings), theirs, count=5)
    spent, peak = measure.printed("benchmarks.labels")
    return [
        measure.compare("harmonize the three whole tables, to torchxrayvision's loading", timed, "s", 1, 1.5, False),
        measure.Line(
            f"harmonize {ROWS:,} rows, time", f"{spent:.3g} s", f"{MAX_SECONDS} s", spent / MAX_SECONDS, limit=1
        ),
        measure.Line(f"harmonize {ROWS:,} rows, peak memory", f"{peak:.0f} MB", f"{MAX_MB} MB", peak / MAX_MB, limit=1),
    ]


if __name__ == "__main__":
    many_rows()
