"""The frozen model: opened, drawn with, its attention looked at."""
