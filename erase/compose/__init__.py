"""One adapter in the place of several."""
