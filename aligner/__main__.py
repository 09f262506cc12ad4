"""`python -m aligner ...`: the same command line, in the form that `accelerate launch -m`
starts."""

from aligner.cli.app import main

if __name__ == "__main__":
    main()
