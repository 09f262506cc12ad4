"""What is on disk, and who may write there: run directories, journals, caches, locks."""
