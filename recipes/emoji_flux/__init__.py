"""How the shipped model `emoji-flux` was made: its world of pictures and captions, its training."""
