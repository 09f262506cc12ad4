"""Recipes of other tools, made into ours: one table of keys for each tool, and what changed."""
