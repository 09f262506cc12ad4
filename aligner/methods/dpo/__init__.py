"""Direct preference optimization, with any objective of the catalogue."""
