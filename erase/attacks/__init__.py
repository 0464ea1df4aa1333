"""Attacks on an erased concept: disguised prompts, and searches with access to the model."""
