"""Testing a reward set before training with it.

Three entrances: `explain.try_rewards` scores given completions and shows what each reward matched (`cohort reward
try`); `audit.audit` looks for bad completions that score higher than an honest wrong answer (`cohort reward audit`);
`preflight.preflight` is the short form of the audit that runs before training. They share `probes`, which writes the
test completions.

For other rooms: those three functions and their result types.
"""
