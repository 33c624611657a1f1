"""Long trials of what README promises of kills, edits and races: `make soak`."""
