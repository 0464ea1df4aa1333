"""The playground: a page that draws with a model and its adapters at any strength."""
