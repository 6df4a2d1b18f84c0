"""`python -m cohort` is `cohort`."""

from cohort.cli import main

main()
