"""Words and sentences for a concept."""
