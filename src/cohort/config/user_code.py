"""Python files and modules that a configuration names: `path/to/file.py:name` or `package.module:name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType

from cohort.types import UserError

_loading = threading.RLock()


def load_module(place: str, reader: str) -> ModuleType:
    """The module at `place`, a `.py` file or an importable name. `reader` begins the messages: "reward 'my.py:f'".

    Raises UserError where there is no such file or module; errors of the code itself pass through.
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
                _refuse_exit(error, place, reader)
                raise
        return sys.modules[key]


def _import(place: str, reader: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except SystemExit as error:
        _refuse_exit(error, place, reader)
        raise
    except ModuleNotFoundError as error:
        # Where the module exists but imports something that does not, its own error passes through.
        if error.name is None or not (place == error.name or place.startswith(error.name + ".")):
            raise
        raise UserError(f"{reader}: there is no module {error.name!r}; is it installed?") from None


def _refuse_exit(error: BaseException, place: str, reader: str) -> None:
    """Raises UserError for SystemExit, which would end the run without a message."""
    if isinstance(error, SystemExit):
        raise UserError(
            f"{reader}: importing {place} calls sys.exit({error.code!r}); put what it does as a script under "
            "`if __name__ == '__main__':`"
        ) from error
