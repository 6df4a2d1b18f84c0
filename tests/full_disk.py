"""`python tests/full_disk.py [--sizes 12]`: runs on a small tmpfs that fills up, at sizes from nothing to enough. Each
must end with the message that the disk is full, with every checkpoint whole, and go on to the undisturbed run's end
once there is room. Needs the right to mount: as root."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import ranks_program
from cohort import UserError
from cohort.train.output import manifest
from torture import end_of, forked, train

ENDS_BY_MESSAGE = 3


def attempt(folder: Path) -> None:
    try:
        train(folder, "grpo")
    except UserError as error:
        print(error)
        if "no space left on the disk" not in str(error):
            raise
        sys.exit(ENDS_BY_MESSAGE)


def mounted(place: Path, kib: int, inodes: int, again: bool = False) -> None:
    options = f"size={kib}k,nr_inodes={inodes}" + (",remount" if again else "")
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)


def filled(place: Path, kib: int, inodes: int, expected: object) -> str:
    """How a run ended on a disk of that size, with room for so many files; raises RuntimeError where it is not as it
    must be."""
    place.mkdir(exist_ok=True)
    mounted(place, kib, inodes)
    try:
        output = place.with_name("output")
        output.unlink(missing_ok=True)
        code = forked(lambda: attempt(place / "run"), output)
        if code not in (0, ENDS_BY_MESSAGE):
            raise RuntimeError(f"{kib} KiB: exit {code}: {output.read_text()[-3000:]}")
        for path in (place / "run").glob("checkpoint-*"):
            if wrong := manifest.damage(path):
                raise RuntimeError(f"{kib} KiB: {path.name}: {wrong}")
        mounted(place, 2**20, 2**20, again=True)
        if code:
            code_again = forked(lambda: train(place / "run", "grpo"), output)
            if code_again:
                raise RuntimeError(f"{kib} KiB, with room: exit {code_again}: {output.read_text()[-3000:]}")
        if end_of(place / "run") != expected:
            raise RuntimeError(f"{kib} KiB: another end")
        return "full" if code else "enough"
    finally:
        subprocess.run(["umount", str(place)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, default=12)
    sizes = parser.parse_args().sizes
    with tempfile.TemporaryDirectory() as name:
        whole, place = Path(name) / "whole", Path(name) / "disk"
        forked(lambda: ranks_program.start(whole, "grpo", save_steps=1, disable_tqdm=True).train(), Path(name) / "log")
        used = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file()) // 1024
        ends = []
        for i in range(sizes):
            kib = max(4, round(1.4 * used * i / sizes))
            ends.append(filled(place, kib, 2**20, end_of(whole)))
            print(f"{kib:>8} KiB  {ends[-1]}", flush=True)
        for inodes in (2, 4, 8, 12, 20, 30):
            ends.append(filled(place, 2**20, inodes, end_of(whole)))
            print(f"{inodes:>8} files  {ends[-1]}", flush=True)
    print(f"{ends.count('full')} runs found the disk full, and went on to the same end with room")
    return 0


if __name__ == "__main__":
    sys.exit(main())
