"""The command line: one file a command. A command parses its options, calls one function of another room, and prints.

Enter at `app.py`, which lists the commands; `app.main` is the entry point. Nothing slow is imported before a command
needs it, so `--help` and mistakes in a configuration take a fraction of a second. `options.py` holds options that
several commands share. No other room imports from here.
"""
