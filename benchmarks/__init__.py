"""Questions about the model and the program that a command answers with figures."""
