"""``python -m vesalius``: the command line, for environments whose scripts are not on the path."""

from vesalius.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
