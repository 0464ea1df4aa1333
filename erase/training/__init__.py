"""Training: from configurations to adapters."""
