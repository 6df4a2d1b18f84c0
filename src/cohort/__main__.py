"""`python -m cohort` is `cohort`."""

from cohort.cli.app import main

main()
