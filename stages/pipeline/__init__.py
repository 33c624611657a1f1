"""What runs and checks the pipeline itself: guard, lock, runner, presets, rules and promises, `make fetch`."""
