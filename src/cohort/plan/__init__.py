"""`cohort plan`: memory and time of a run, estimated without loading its weights.

Enter at `make.make_plan`. It runs the library's own passes on fake tensors, which have shapes but no storage
(`blank`, `passes`), counts their bytes and FLOPs (`meter`, `costs`), turns these into needs by phase (`needs`) for a
`machine`, and `table` prints them. Only the command line imports from here.
"""
