"""Recipe of the shipped model `emoji-flux`: its vocabulary, training data and training."""
