"""The networks of FLUX.1 in Flax, and their tokenizers."""
