"""From sources and formats to typed rows: reading, mapping, mixing, splitting, and the ledger.

Start at `load_rows`, which takes the `data:` section of a recipe. Imports no torch; `datasets` and
`pyarrow` are loaded only where a hub dataset or a Parquet file is read.
"""
