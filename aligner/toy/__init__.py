"""The offline world: verifiable tasks, a tokenizer and a tiny model that is right part of the time.
See `world.py`.

Importing this package loads no torch; `write_world` does, when it is called.
"""
