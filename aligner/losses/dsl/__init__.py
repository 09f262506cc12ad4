"""Preference objectives as text: a small language, its parser, its interpreter, and checks of what
it computes."""
