"""`python -m securetune` is the command `securetune`."""

from securetune.cli import main

if __name__ == "__main__":
    main()
