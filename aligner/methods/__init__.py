"""The training methods, one folder each, and the pipeline that runs any of them."""
