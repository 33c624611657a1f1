"""Does distillation help? `make kd-gain`: settings chosen on validation, three seeds, test read once."""
