"""The console that untrusted text is printed on: completions, names of columns, keys, files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from cohort.types import printable


class SafeConsole(Console):
    """A rich console that prints text as it is read: without markup and emoji codes, and with control characters as
    visible escapes. Only rich's own codes, of colours and of a live display, reach the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, **options})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # rich renders the parts of tables and panels by this method too, so that their widths count the escapes.
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))
