"""FLUX.2's models, where they differ from FLUX.1's."""
