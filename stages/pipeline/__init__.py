"""What runs and checks the pipeline itself: guard, lock, repro, presets."""
