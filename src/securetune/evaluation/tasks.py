"""Tasks with one right answer a prompt, scored by exact match: registered ones, and files of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from securetune.data.prompts import Prompt, read_prompts_by_line
from securetune.errors import DataError
from securetune.evaluation.registry import Registry, find_split

_ROWS_NAMED = 5


@dataclass(frozen=True)
class Task:
    """Prompts with their right answers.

    Attributes:
        name: Registered name (with its split, if one was asked for) or file name without ending.
        prompts: At least one; the right answer is in each one's metadata as `answer`.
    """

    name: str
    prompts: tuple[Prompt, ...]


@dataclass(frozen=True)
class RegisteredTask:
    """A task that is known by name.

    Attributes:
        name: What the user types.
        description: One sentence for a list.
        splits: Names after the `@`, the default first.
        load: Split → prompts with `answer` in their metadata.
    """

    name: str
    description: str
    splits: tuple[str, ...]
    load: Callable[[str], Iterable[Prompt]]


_TASKS: Registry[RegisteredTask] = Registry("task")


def register_task(task: RegisteredTask) -> RegisteredTask:
    """Make a task available by name.

    Raises:
        ValueError: If the name is taken.
    """
    return _TASKS.add(task)


def list_tasks() -> list[RegisteredTask]:
    """Return the registered tasks."""
    return _TASKS.all()


def load_task(name_or_file: str, max_prompts: int | None = None) -> Task:
    """Find a task by registered name, or as a JSON-lines file with `prompt` (or `messages`) and `answer`.

    Raises:
        DataError: If it is neither, or rows lack an answer (each such row is named).
    """
    found = find_split(name_or_file, _TASKS)
    if found is not None:
        registered, split = found
        return Task(name_or_file, tuple(registered.load(split))[:max_prompts])
    path = Path(name_or_file)
    if not path.exists():
        raise DataError(f'task "{name_or_file}" is neither a registered task nor a file. {_TASKS.hint(name_or_file)}')
    rows = read_prompts_by_line(path)
    _require_answers(path, rows)
    return Task(path.stem, tuple(rows.values())[:max_prompts])


def _require_answers(path: Path, rows: Mapping[int, Prompt]) -> None:
    lacking = [
        str(number)
        for number, prompt in rows.items()
        if not isinstance(prompt.metadata.get("answer"), str) or not prompt.metadata["answer"].strip()
    ]
    if lacking:
        more = f" and {len(lacking) - _ROWS_NAMED} more" if len(lacking) > _ROWS_NAMED else ""
        raise DataError(
            f"{path}: every row of a task must have `answer`, a text that is not empty; "
            f"missing in row {', '.join(lacking[:_ROWS_NAMED])}{more}"
        )


def is_exact_match(answer: str, response: str) -> bool:
    """Tell whether a response is the right answer, apart from white space.

    Runs of white space count as one space: a tokenizer may not give back the exact spacing. Upper case, punctuation and
    any further word count.
    """
    return answer.split() == response.split()
