"""File layouts of adapters."""
