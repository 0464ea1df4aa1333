"""A hundred invented persons, taught to the small FLUX by an adapter."""
