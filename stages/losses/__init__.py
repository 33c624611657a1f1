"""Distillation losses, one file each.

A file defines `NEEDS` (`"logits"`: the teacher's cached logits are enough, and it never runs again; `"features"`: it
runs beside the student in every step), a pydantic class `Settings` with the keys of `losses.<file name>` in
params.yaml, and `terms(given: Signals, settings: Settings) -> dict[str, Tensor]`: named scalar terms, already weighted,
whose sum is the loss. The hard labels' term is called `task`; every other one is least when the student equals the
teacher. Every term is logged, and how strong its gradient is beside the task's. `stages.core.objectives` has `Signals`
(`student`, `soft`: the teacher's logits, `target`, `annotated`: where a target counts, `seen`: the student's and the
teacher's features) and the means over annotated elements. The module's docstring gives formula, paper, and the value
when the student equals the teacher, and ends with the entry for params.yaml, which is what the tests run every loss
with.
"""
