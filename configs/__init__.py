"""Run configurations: each file says what differs from the default."""
