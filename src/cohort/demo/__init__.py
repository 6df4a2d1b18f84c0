"""`cohort demo`: a model learns while you watch. `real.py` trains an instruct model of 135 million parameters, which
`packaged_model.py` finds and converts; `small.py` trains one of half a million, built in and taught on the spot."""
