"""Full-size parity with diffusers."""
