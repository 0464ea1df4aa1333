"""The operating system: files of unknown origin, read within limits, and XLA's environment."""
