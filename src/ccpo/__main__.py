"""`python -m ccpo` is the command `ccpo`."""

from .cli import main

if __name__ == "__main__":
    main()
