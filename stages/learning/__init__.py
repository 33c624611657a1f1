"""Training: cohorts, objectives, losses, layers, ranks, soft labels."""
