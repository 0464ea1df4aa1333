"""EraseAnything: a concept is erased from a FLUX model by a LoRA trained at two levels."""
