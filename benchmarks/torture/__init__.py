"""What breaks a run's word, tried many times."""
