"""Python files and modules that a configuration names: `path/to/file.py:name` or `package.module:name`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import threading
import traceback
from pathlib import Path
from types import ModuleType

from cohort.types import UserError

_NOT_THE_USERS = (f"{Path(__file__).parents[1]}{os.sep}", importlib.__file__, "<frozen importlib")
"""How the names of files begin whose frames a message leaves out: this package's, and the import system's."""

_loading = threading.RLock()


def load_module(place: str, reader: str) -> ModuleType:
    """The module at `place`, a `.py` file or an importable name. `reader` begins the messages: "reward 'my.py:f'".

    Raises UserError where there is no such file or module, and with the place for an error of the code itself.
    """
    return _load_file(place, reader) if place.endswith(".py") else _import(place, reader)


def _load_file(place: str, reader: str) -> ModuleType:
    path = Path(place).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"{reader}: there is no file {path}")
    # The key in sys.modules is the path: two names from one file share its state, and no installed module is hidden.
    key = str(path)
    # Without the lock, a second thread would find the module before its code has run.
    with _loading:
        if key not in sys.modules:
            spec = importlib.util.spec_from_file_location(key, path)
            assert spec is not None and spec.loader is not None, path
            module = sys.modules[key] = importlib.util.module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException as error:
                del sys.modules[key]
                _refuse(error, place, reader)
                raise
        return sys.modules[key]


def _import(place: str, reader: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except BaseException as error:
        # The module may exist and import something that does not.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (place == missing or place.startswith(missing + ".")):
            raise UserError(f"{reader}: there is no module {missing!r}; is it installed?") from None
        _refuse(error, place, reader)
        raise


def users_frames(error: BaseException) -> str:
    """Where the error was raised: the frames of its traceback in the user's files, and the place of a syntax error, as
    lines of a message. Frames of this package and of the import system are left out, unless there are no others."""
    raised = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in raised.stack if not frame.filename.startswith(_NOT_THE_USERS)]
    lines = traceback.format_list(frames or list(raised.stack))
    if isinstance(error, SyntaxError):
        lines = list(raised.format_exception_only())[:-1]
    return "".join(f"\n{line.rstrip()}" for line in lines)


def _refuse(error: BaseException, place: str, reader: str) -> None:
    """Raises UserError for an error of the code that is imported, and for SystemExit, which would end the run without
    a message."""
    if isinstance(error, SystemExit):
        raise UserError(
            f"{reader}: importing {place} calls sys.exit({error.code!r}); put what it does as a script under "
            "`if __name__ == '__main__':`"
        ) from error
    if isinstance(error, Exception) and not isinstance(error, UserError):
        problem = error.msg if isinstance(error, SyntaxError) else error
        raise UserError(f"{reader}: {type(error).__name__}: {problem}{users_frames(error)}") from error
