"""The command `securetune`, standing still where a test wants to stop it: a signal to a run under way may come late.

    STALL_FILE=start/suite/responses.jsonl.part STALL_ROW=5 STALL_REACHED=reached python stalled_command.py run …

sleeps when the file's fifth row is about to be appended, in whichever process does it, and makes the file `reached`.
Worker processes are spawned, so they run the body of this file too.
"""

import os
import sys
import time
from pathlib import Path

FILE, ROW, REACHED = os.environ["STALL_FILE"], int(os.environ["STALL_ROW"]), Path(os.environ["STALL_REACHED"])
SECONDS = 600

rows = 0


def stall(event, arguments):
    global rows
    if event == "open" and arguments[1] == "a" and str(arguments[0]).endswith(FILE):
        rows += 1
        if rows == ROW:
            REACHED.touch()
            time.sleep(SECONDS)


sys.addaudithook(stall)

if __name__ == "__main__":
    from securetune.cli import main

    main()
