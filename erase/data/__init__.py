"""What training draws from."""
