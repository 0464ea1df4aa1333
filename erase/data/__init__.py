"""Training data: prompts, words, trajectories and pictures."""
