"""From configurations to adapters."""
