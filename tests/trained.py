"""A project after its trainings: small films, untrained models in the place of trained ones, and logits."""

from pathlib import Path

import numpy as np
import owners
import pandas as pd

from stages.core import files, findings, params
from stages.judging import class_maps
from stages.nets import nets

SIZE = 64
KNOWN = ["Cardiomegaly", "Effusion", "Nodule"]
CELL = {"cohort": "c", "student": "eeea_net_c2", "teacher": "resnet18", "loss": "sigmoid_kd", "seed": "0"}
ARGS = [word for name, value in CELL.items() for word in (f"--{name}", value)]


def write_data(root: Path, boxed: bool) -> None:
    """Three data sets of 20 small films, 18 of them to test on, three untrained models, and logits as if of each."""
    rng, predictions = np.random.default_rng(0), []
    names = [f"{number:02}.png" for number in range(20)]
    for dataset in params.read(owners.REPOSITORY / "params.yaml")["datasets"]:
        missing = dict.fromkeys(findings.vocabulary().names, findings.MISSING)
        facts = missing | {name: np.arange(20) % 3 % 2 for name in KNOWN}
        labels = {"image": names, "patient": [f"p{i // 2}" for i in range(20)], "split": ["train"] * 2 + ["test"] * 18}
        files.write_table(pd.DataFrame(labels | facts), root / f"data/labels/{dataset}.parquet")
        index = pd.DataFrame({"image": names, "shard": np.arange(20) // 10, "row": np.arange(20) % 10})
        files.write_table(index, root / f"data/images/{dataset}/index.parquet")
        for shard in range(2):
            films = rng.integers(0, 256, (10, SIZE, SIZE), np.uint8)
            np.save(root / f"data/images/{dataset}/shard_{shard:04d}.npy", films)
        has_boxes = boxed and dataset == "chestxray14"
        drawn = [(name, finding) for name in names[1::3] if has_boxes for finding in KNOWN]
        boxes = pd.DataFrame(drawn, columns=["image", "finding"], dtype=str)
        boxes[class_maps.BOX] = rng.uniform(0.1, 0.4, (len(drawn), 4))
        files.write_table(boxes, root / f"data/boxes/{dataset}.parquet")
        logits = pd.DataFrame(rng.normal(size=(18, len(KNOWN))).astype(np.float32), columns=KNOWN)
        predictions.append(logits.assign(dataset=dataset, image=names[2:], split="test"))
    for folder, architecture, seed in (
        ("teacher/c/resnet18", "resnet18", 0),
        ("twin/c/eeea_net_c2/0", "eeea_net_c2", 1),
        ("distilled/c/eeea_net_c2/resnet18/sigmoid_kd/0", "eeea_net_c2", 2),
    ):
        files.write_table(pd.concat(predictions), root / f"data/predictions/{folder}.parquet")
        about = {"architecture": architecture, "findings": KNOWN, "size_px": SIZE}
        net = nets.build_model(architecture, len(KNOWN), SIZE, seed=seed)
        nets.write(net, about, root / f"data/models/{folder}")
