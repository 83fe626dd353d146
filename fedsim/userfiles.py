"""Functions from files of the user's own, which a configuration names: `./mine.py:my_rule`.

Nothing of such a file runs unless whoever started the run allows it (`--allow-code`). It lies beside the configuration
or below, is read once, and its SHA-256 is kept in the record. What goes wrong in it is told with file, line and
function.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType, TracebackType
from typing import Any

from fedsim.errors import ConfigError, UserCodeError

_MOST_BYTES = 2**24
_MOST_FRAMES = 12


@dataclass(frozen=True)
class UserFunction:
    """A function of a user's file, by the words of the configuration (`name`), with the options given there."""

    name: str
    path: Path
    function: Callable[..., Any]
    options: Mapping[str, Any]

    def __call__(self, *values: Any, **more: Any) -> Any:
        """What the function returns. Raises UserCodeError for whatever it raises."""
        try:
            return self.function(*values, **more, **self.options)
        except Exception as error:
            raise UserCodeError(told(error, self.name, self.path)) from error

    def takes(self, name: str) -> bool:
        """Whether the function has a parameter of that name."""
        return name in inspect.signature(self.function).parameters

    def refuse(self, what: str) -> UserCodeError:
        """The error for what it returned, which is not what it has to return: `what`."""
        code = getattr(self.function, "__code__", None)
        line = f":{code.co_firstlineno}" if isinstance(code, CodeType) else ""
        return UserCodeError(f"{self.name}: {self.path.name}{line}, in {_called(self.function)}: {what}")


@dataclass(frozen=True)
class UserFiles:
    """The files that a run may load: below `base_dir`, if `allowed`. `seen` holds what was read, by the file's name."""

    base_dir: Path
    allowed: bool = False
    seen: dict[str, tuple[str, ModuleType]] = field(default_factory=dict)

    def load(self, name: str, key: str, n_values: int, options: Mapping[str, Any], *named: str) -> UserFunction:
        """The function that `name`, as `./mine.py:my_rule`, stands for, which is called with so many values.

        Args:
            name: file and function, as in the configuration.
            key: the configuration's key, for messages.
            n_values: how many values come first.
            options: what comes by name besides.
            named: names of values that the function may ask for.

        Raises ConfigError.
        """
        if not self.allowed:
            raise ConfigError(
                f"{key}: {name} is code of your own, which is loaded only where that is said: give --allow-code "
                "(in Python allow_code=True)"
            )
        file, _, called = name.rpartition(":")
        path = self._path(file, key)
        module = self._module(file, path, key)
        function = getattr(module, called, None)
        if not callable(function):
            there = [each for each, value in vars(module).items() if inspect.isfunction(value) and each[0] != "_"]
            raise ConfigError(f"{key}: {file} has no function {called}; there: {', '.join(there) or 'none'}")
        found = UserFunction(name, path, function, dict(options))
        _check_call(found, key, n_values, named)
        return found

    def sha256(self) -> str:
        """What was loaded, file by file, as JSON: {"./mine.py": SHA-256}; empty for nothing."""
        return json.dumps({file: digest for file, (digest, _) in sorted(self.seen.items())}) if self.seen else ""

    def _path(self, file: str, key: str) -> Path:
        """The file's path. Raises ConfigError for one that is not beside the configuration or below."""
        base = self.base_dir.resolve()
        path = (base / file).resolve()
        if Path(file).is_absolute() or not path.is_relative_to(base):
            raise ConfigError(f"{key}: {file}: a file of your own lies beside the configuration or below: {base}")
        return path

    def _module(self, file: str, path: Path, key: str) -> ModuleType:
        if file in self.seen:
            return self.seen[file][1]
        try:
            with path.open("rb") as stream:
                source = stream.read(_MOST_BYTES + 1)
        except OSError as error:
            raise ConfigError(f"{key}: {path}: cannot be read: {error.strerror}") from None
        if len(source) > _MOST_BYTES:
            raise ConfigError(f"{key}: {path}: more than {_MOST_BYTES:,} bytes")
        digest = hashlib.sha256(source).hexdigest()
        module = _run(source, path, f"fedsim_user_{digest[:16]}", f"{key}: {file}")
        self.seen[file] = digest, module
        return module


def told(error: BaseException, name: str, path: Path) -> str:
    """One line with file, line and function, then the traceback from the user's file on."""
    frames = traceback.extract_tb(_from(error.__traceback__, path))
    inside = [frame for frame in frames if frame.filename == str(path)]
    where = f"{path.name}:{inside[-1].lineno}, in {inside[-1].name}" if inside else path.name
    line = " ".join(f"{name}: {where}: {type(error).__name__}: {error}".split())
    text = "".join(traceback.format_list(frames[-_MOST_FRAMES:]))
    return f"{line:.500}\n{text}".rstrip()


def _from(trace: TracebackType | None, path: Path) -> TracebackType | None:
    """The traceback from the first frame of a file on."""
    while trace is not None and trace.tb_frame.f_code.co_filename != str(path):
        trace = trace.tb_next
    return trace


def _run(source: bytes, path: Path, module_name: str, where: str) -> ModuleType:
    """The module that a file's text makes. Raises ConfigError for whatever goes wrong in it."""
    module = ModuleType(module_name)
    module.__file__ = str(path)
    sys.modules[module_name] = module  # dataclasses look their module up
    try:
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except SyntaxError as error:
        raise ConfigError(f"{where}:{error.lineno}: {type(error).__name__}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(_from(error.__traceback__, path))
        own = [frame for frame in frames if frame.filename == str(path)]
        at = f":{own[-1].lineno}, in {own[-1].name}" if own else ""
        raise ConfigError(" ".join(f"{where}{at}: {type(error).__name__}: {error}".split())) from None
    return module


def _check_call(found: UserFunction, key: str, n_values: int, named: tuple[str, ...]) -> None:
    """Refuses a function that cannot be called with what it will be given."""
    try:
        signature = inspect.signature(found.function)
        given = {name: None for name in named if name in signature.parameters}
        signature.bind(*[None] * n_values, **given, **found.options)
    except (TypeError, ValueError) as error:
        code = getattr(found.function, "__code__", None)
        line = f":{code.co_firstlineno}" if isinstance(code, CodeType) else ""
        asks = f"{n_values} values" + (f", by name {', '.join(named)} if it asks for them" if named else "")
        raise ConfigError(
            f"{key}: {found.path.name}{line}, in {_called(found.function)}: {error}; it is called with {asks}, and "
            f"the options {', '.join(found.options) or '(none)'}"
        ) from None


def _called(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
