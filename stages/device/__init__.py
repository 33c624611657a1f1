"""The student as files that other runtimes run: graphs with preprocessing, smaller variants, how far these agree."""
