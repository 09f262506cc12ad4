"""The pictures and pages of a run, and the card of its model."""
