"""Reports and charts of runs, and the model card."""
