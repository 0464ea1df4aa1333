"""What a configuration means to its method before training: words, bank, first state, cost."""
