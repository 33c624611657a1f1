"""The model card and the reporting checklists: what machines read of a card, and the tables that templates show."""

from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCardData

GUIDELINES = {
    "CLAIM 2024": "Checklist for Artificial Intelligence in Medical Imaging, 2024 update, 44 items (Tejani et al., "
    "Radiology: Artificial Intelligence 2024, 6(4), e240300).",
    "TRIPOD+AI": "Transparent reporting of multivariable prediction models, regression or machine learning, 27 items "
    "with their parts (Collins et al., BMJ 2024, 385, e078378).",
}


def metadata(scores: dict[str, float | None], headline: Any, drawn: list[str]) -> str:
    """The head of a model card for the Hugging Face hub, YAML between dashes.

    Args:
        scores: data set -> the student's mean AUROC on its test films; None is left out.
        headline: of params.yaml.
        drawn: the data sets whose films are drawn, which their results' names say.
    """
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="multi-label chest X-ray classification",
            dataset_type=dataset,
            dataset_name=dataset + (" (drawn films)" if dataset in drawn else ""),
            dataset_split="test",
            metric_type="roc_auc",
            metric_name="mean AUROC over findings",
            metric_value=round(auroc, 4),
        )
        for dataset, auroc in scores.items()
        if auroc is not None
    ]
    data = ModelCardData(
        model_name=f"{headline.student}-{headline.loss}",
        eval_results=results or None,
        language="en",
        license="other",
        license_name="as-the-data-allow",
        library_name="onnx",
        pipeline_tag="image-classification",
        tags=["chest-x-ray", "knowledge-distillation", "not-for-diagnosis"],
    )
    return f"---\n{data.to_yaml()}\n---\n"


def checklists(table: pd.DataFrame) -> list[tuple[str, str, list[tuple[str, str, bool, str]]]]:
    """Each guideline's title, source and items (number, what it asks for, whether it is filled, where or by whom).

    Args:
        table: guideline, item, asks, state, where.
    """
    found = []
    for title, cited in GUIDELINES.items():
        rows = table[table["guideline"] == title].to_dict("records")
        items = [(row["item"], row["asks"], row["state"] == "filled", row["where"]) for row in rows]
        found.append((title, cited, items))
    return found
