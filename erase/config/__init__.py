"""What a run is configured by: frozen dataclasses and what their fields take."""
