"""Protected directions that one training kept, lent to the others of a run that would gather the same.

They depend on the start model, the requests and the method's options, and on no seed and no learning rate.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from securetune.defenses.protected_subspace import FOLDER, MANIFEST


def borrow_directions(cell: Path, others: Iterable[Path]) -> bool:
    """Give a training the directions of another one with the same options, if there are any yet.

    The files are links where the disk allows it, so that they take no more of it. The training compares the hash of all
    that they depend on, and gathers its own where that differs.

    Args:
        cell: Output folder of the training.
        others: Those of the others.

    Returns:
        Whether something was lent.
    """
    own = cell / FOLDER
    lender = next((other / FOLDER for other in others if (other / FOLDER / MANIFEST).exists()), None)
    if lender is None or own.exists():
        return False
    own.mkdir(parents=True)
    for path in sorted(lender.iterdir(), key=lambda path: path.name == MANIFEST):  # without it they count as none
        if path.is_file() and not path.name.startswith("."):
            _link(path, own / path.name)
    return True


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
