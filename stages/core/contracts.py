"""What a table between stages must look like, whoever made it."""

import pandas as pd
import pandera.pandas as pa

from stages.core import findings, splits

KEYS = ["image", "patient", "study", "split", "view", "sex", "age", "label_source"]
SEXES = ("M", "F")
SOURCES = ("report", "model", "physician")
BOX_SIDES = ["x", "y", "width", "height"]


def labels() -> pa.DataFrameSchema:
    """data/labels/<dataset>.parquet: one row an image, keys first, then a fact for each finding of the table."""
    text = pa.Check.str_length(min_value=1)
    lowest, highest = min(findings.FACTS), max(findings.FACTS)
    return pa.DataFrameSchema(
        {
            "image": pa.Column(str, text, unique=True),
            "patient": pa.Column(str, text),
            "study": pa.Column(str, text),
            "split": pa.Column(str, pa.Check.isin(splits.SPLITS)),
            "view": pa.Column(str, text),
            "sex": pa.Column(str, pa.Check.isin(SEXES), nullable=True),
            "age": pa.Column(float, pa.Check.ge(0), nullable=True),
            "label_source": pa.Column(str, pa.Check.isin(SOURCES)),
            **{name: pa.Column("int8", pa.Check.in_range(lowest, highest)) for name in findings.names()},
        },
        checks=[
            pa.Check(lambda table: table["image"].is_monotonic_increasing, error="rows are sorted by image"),
            pa.Check(
                lambda table: table.groupby("patient")["split"].nunique().max() == 1, error="a patient has one split"
            ),
        ],
        strict=True,
        ordered=True,
    )


def boxes() -> pa.DataFrameSchema:
    """data/boxes/<dataset>.parquet: drawn boxes as fractions of the image side."""
    side = pa.Column(float, pa.Check.in_range(0, 1))
    return pa.DataFrameSchema(
        {
            "image": pa.Column(str),
            "finding": pa.Column(str, pa.Check.isin(findings.names())),
            **dict.fromkeys(BOX_SIDES, side),
        },
        strict=True,
        ordered=True,
    )


def check(table: pd.DataFrame, schema: pa.DataFrameSchema, name: str) -> None:
    """Check a table.

    Raises:
        ValueError: with the table's name and every rule that it breaks.
    """
    try:
        schema.validate(table, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases
        broken = cases.groupby(["column", "check"], dropna=False).agg(
            rows=("index", "size"), example=("failure_case", "first")
        )
        listed = "; ".join(
            f"{column}: {rule} ({row.rows} times, e.g. {row.example!r})" for (column, rule), row in broken.iterrows()
        )
        raise ValueError(f"{name} breaks its contract: {listed}") from error
