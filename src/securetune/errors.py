"""What can go wrong, as one small hierarchy.

```
SecuretuneError                 anything this package raises on purpose
├── InputError                  the user's input is wrong; exit status 2; lists every problem found
│   ├── ConfigError             a setting or a YAML file
│   ├── ModelError              a model folder, its tokenizer, its template or its architecture
│   ├── DataError               a data, prompt or task file
│   └── ArtifactError           a file of an earlier stage that does not fit this one
└── RunError                    a run that was asked for correctly cannot go on; exit status 1
    └── StartModelError         the start model does not refuse, so there is no safety to keep
```

Each problem is one sentence that names the thing, the requirement, what was got and what to do. The command line prints
the sentences and exits; it never shows a traceback for a `SecuretuneError`.
"""

from __future__ import annotations

from collections.abc import Iterable


class SecuretuneError(Exception):
    """Base of every error that this package raises on purpose."""

    exit_status = 1


class InputError(SecuretuneError):
    """One or several mistakes in what the user gave.

    Attributes:
        problems: One sentence each, in the order in which they were found.
    """

    exit_status = 2

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[type[InputError], tuple[list[str]], dict[str, object]]:
        """Pickle the sentences apart, so that an error from a worker process still lists them one by one."""
        return type(self), (self.problems,), self.__dict__


class ConfigError(InputError):
    """A setting is unknown, missing or out of range."""


class ModelError(InputError):
    """A model cannot be loaded or lacks what the method needs."""


class DataError(InputError):
    """A data, prompt or task file cannot be used."""


class ArtifactError(InputError):
    """A file written by an earlier stage does not fit what it is used for."""


class RunError(SecuretuneError):
    """A correctly requested run cannot go on."""


class StartModelError(RunError):
    """The start model does not refuse harmful requests, so there is no safety to keep."""


class ProblemList:
    """Collects the mistakes of several checks, so that the user sees all of them together.

    Example:
        >>> problems = ProblemList()
        >>> with problems.collect():
        ...     raise DataError("data.jsonl: no such file")
        >>> problems.found
        ['data.jsonl: no such file']
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def collect(self) -> _Collector:
        """Return a context that swallows an `InputError` and keeps its sentences."""
        return _Collector(self.found)

    def raise_if_any(self, error: type[InputError] = InputError) -> None:
        """Raise `error` with everything found so far.

        Raises:
            InputError: If at least one problem was found.
        """
        if self.found:
            raise error(self.found)


class _Collector:
    def __init__(self, found: list[str]) -> None:
        self._found = found

    def __enter__(self) -> _Collector:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if isinstance(error, InputError):
            self._found.extend(error.problems)
            return True
        return False
