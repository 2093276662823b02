"""`python -m screening`: the command `screening`."""

from screening.cli import main

main()
