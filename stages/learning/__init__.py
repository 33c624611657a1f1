"""Training: cohorts, objectives, the loop, fast CPU layers, ranks, checkpoints, soft labels."""
