"""The worker of cohort.rewards.verify: pairs in, "true" or "false" out, a line each."""

from __future__ import annotations

import json
import logging
import os
import sys

MEMORY_BYTES = 4 * 2**30


def main() -> None:
    import resource

    from math_verify import parse, verify

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)
    # The verdict has the pipe to itself: whatever a library prints goes nowhere.
    verdicts = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    print("ready", file=verdicts, flush=True)
    for line in sys.stdin:
        candidate, reference = (_parsed(parse, text) for text in json.loads(line))
        same = bool(candidate and reference) and verify(reference, candidate, timeout_seconds=None)
        print("true" if same else "false", file=verdicts, flush=True)


def _parsed(parse, text: str):
    """As LaTeX where that gives something, else as it stands."""
    return parse(f"${text.strip().strip('$')}$", parsing_timeout=None) or parse(text, parsing_timeout=None)


if __name__ == "__main__":
    main()
