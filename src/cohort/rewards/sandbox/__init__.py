"""Running untrusted programs and judging them from outside.

`run` starts two processes for each program. `program` holds the untrusted code and nothing else; `tester` holds the
tests, asks the program for values over a socket (`wire`, `remote`) and compares them itself. Both are confined by
`kernel`; `layers` says what this machine offers.

`program`, `tester` and what they import run in a bare Python where only this folder and the standard library exist:
they use relative imports, and this file imports nothing.
"""
