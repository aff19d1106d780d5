"""`python -m vgen` and the `vgen` command."""

from vgen.cli import main

if __name__ == "__main__":
    main()
