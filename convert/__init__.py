"""Tensor layouts: PyTorch files on one side, Flax trees on the other. Needs neither torch nor JAX."""
