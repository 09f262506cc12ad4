"""The command line, imported as `aligner.cli`: parse, call, print. One noun per module; nothing
heavy at the top."""
