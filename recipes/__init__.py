"""Recipes that build the models shipped with the project."""
