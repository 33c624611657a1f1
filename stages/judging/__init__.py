"""Scores of predictions and of class maps with their intervals, the gallery, and the models that they are of."""
