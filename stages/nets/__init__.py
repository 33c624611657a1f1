"""Nets: built by name, started from weights, saved, loaded, run, and read layer by layer."""
