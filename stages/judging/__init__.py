"""Scores of predictions and of class maps, and the models that they are of."""
