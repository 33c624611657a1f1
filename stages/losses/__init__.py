"""Distillation losses, one file each.

A file defines `NEEDS` (`"logits"`: the teacher's cached logits are enough), a pydantic class `Settings` with the keys
of `losses.<file name>` in params.yaml, and `terms(given: Signals, settings: Settings) -> dict[str, Tensor]`: named
scalar terms, already weighted, whose sum is the loss. Every term is logged. The module's docstring gives formula,
paper, and the value when the student equals the teacher. `stages.core.objectives` has the masked means.
"""
