"""Sources and formats -> typed rows: reading, mapping, mixing, splitting, and the books of all of
it.

Start at `load_rows`, which takes the `data:` section of a recipe. Imports no torch; `datasets` and
`pyarrow` are loaded only where a hub dataset or a Parquet file is read.
"""
