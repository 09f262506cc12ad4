"""Test sets of an arena: chosen from a pool of prompts, frozen by hash, and kept apart from what is
trained on."""
