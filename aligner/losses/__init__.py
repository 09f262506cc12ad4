"""Pure functions of tensors: preference objectives, reward losses, and objectives written as
text."""
