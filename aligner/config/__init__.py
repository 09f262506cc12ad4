"""Recipes: schema, loading, overrides. Nothing in this package imports torch."""
