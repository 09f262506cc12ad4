"""The shipped recipes: YAML to read, copy and edit; there is no code here."""
