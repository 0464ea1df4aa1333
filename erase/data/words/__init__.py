"""Words and sentences about a concept."""
