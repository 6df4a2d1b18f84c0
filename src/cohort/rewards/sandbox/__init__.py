"""Running untrusted programs, and judging them from another process.

Enter at `run`, which starts two processes for each program. `program` holds the untrusted code and nothing else;
`tester` holds the tests, asks the program for values over a socket (`wire`, `remote`) and compares them itself.
`plan` turns a row's tests into what the tester runs. `kernel` confines both processes (`syscalls` lists the forbidden
system calls); `layers` finds out which layers of isolation this machine has.

For other rooms: `run.run_tests`, `run.run_command`, `run.Verdict`, `plan.plan`, `layers.Limits`,
`layers.find_layers`, `layers.require`.

`program`, `tester` and the modules that they import run in a bare Python that has only this folder and the standard
library. They use relative imports, and this file imports nothing.
"""
