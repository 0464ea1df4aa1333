"""Figures of the paper in its own layout, for any model and adapters."""

# The number of each figure in the paper, by its name on the command line.
FIGURES = {
    "single-concept": 4,
    "methods": 14,
    "disentanglement": 15,
    "unrelated": 16,
    "related": 17,
    "losses": 18,
}
