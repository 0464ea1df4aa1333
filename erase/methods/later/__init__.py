"""Methods that were published after EraseAnything and are not in its paper's tables."""
