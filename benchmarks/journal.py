"""A stage of ``first_contact.py`` as its processes and their driver know it: the journal, and who writes it."""

import faulthandler
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


class Journal:
    """A line of JSON for each record. Lines begin with a break too: one that was cut off spoils no other.

    Records are of an ``item`` (None: of a worker) with its ``outcome``: begun, passed, skipped, failed; or ``whole``,
    where a stage came to its end.
    """

    def __init__(self, file: Path):
        self.file = Path(file)
        self._records: list[dict] = []
        self._read = 0  # bytes

    def add(self, **record) -> None:
        with open(self.file, "ab", buffering=0) as file:
            file.write(f"\n{json.dumps(record)}\n".encode())

    def records(self) -> list[dict]:
        if self.file.exists():
            with open(self.file, "rb") as file:
                file.seek(self._read)
                added = file.read()
            added = added[: added.rfind(b"\n") + 1]
            self._read += len(added)
            for line in added.splitlines():
                with suppress(ValueError):
                    self._records.append(json.loads(line))
        return self._records

    def latest(self) -> dict[str, dict]:
        """The last finished record of every item."""
        return {r["item"]: r for r in self.records() if r.get("item") and r["outcome"] != "begun"}

    def settled(self, since: int) -> set[str]:
        """The items that need no (further) try in a call that began after ``since`` records."""
        ended = [(n, r) for n, r in enumerate(self.records()) if r.get("item") and r["outcome"] != "begun"]
        return {r["item"] for n, r in ended if n >= since or r["outcome"] != "failed"}

    def whole(self) -> bool:
        return any("whole" in r for r in self.records())

    def done(self) -> bool:
        return self.whole() and all(r["outcome"] != "failed" for r in self.latest().values())


class Skipped(Exception):
    """Raised by an item that cannot run here: its text says why."""


class Worker:
    """The process that does every ``of``-th item of a stage, one after the other, as the driver's ``job`` says."""

    def __init__(self, stage: str, job: dict):
        self.job, self.index = job, job["worker"]
        self.journal = Journal(job["journals"][stage])
        self._settled = self.journal.settled(job["since"])
        self.log = os.fdopen(os.dup(2), "w", buffering=1)  # pytest takes the other one
        self._began = 0.0
        faulthandler.enable(self.log)

    def run(self, items: dict[str, Callable[[], tuple[str, object]]]) -> None:
        """Calls its share of ``items``: each returns a text to print and what is kept beside it, or raises."""
        for position, (item, call) in enumerate(items.items()):
            if not self.has(position, item):
                continue
            self.begin(item)
            try:
                said, result = call()
            except Skipped as reason:
                self.end(item, "skipped", str(reason))
            except Exception as error:
                traceback.print_exc()
                self.end(item, "failed", f"{type(error).__name__}: {error}".partition("\n")[0])
            else:
                self.end(item, "passed", said, result)

    def has(self, position: int, item: str) -> bool:
        """Whether the item is this process's, chosen, and still to do."""
        mine = position % self.job["of"] == self.index and re.search(self.job["only"], item)
        return bool(mine) and item not in self._settled

    def begin(self, item: str) -> None:
        """From now the process ends, saying where it was, if the item does not end within the stage's limit."""
        self._began = time.monotonic()
        self.journal.add(item=item, outcome="begun", worker=self.index)
        faulthandler.dump_traceback_later(self.job["limit"], exit=True, file=self.log)

    def end(self, item: str, outcome: str, said: str, result: object = None) -> None:
        """Ends the process where a failure has taken the device along: nothing that came after it would pass."""
        faulthandler.cancel_dump_traceback_later()
        seconds = time.monotonic() - self._began
        self.journal.add(item=item, outcome=outcome, worker=self.index, seconds=seconds, said=said, result=result)
        if outcome == "failed" and not _device_lives():
            os._exit(3)

    def lost(self, said: str) -> None:
        """Notes a failure that belongs to no item."""
        self.journal.add(item=None, outcome="failed", worker=self.index, seconds=0.0, said=said)


def main(*stages: Callable[[Worker], None]) -> None:
    """Runs the stage that the first argument names on the job of the second."""
    name, job = sys.argv[1:]
    (stage,) = (stage for stage in stages if stage.__name__ == name)
    stage(Worker(name, json.loads(job)))


def _device_lives() -> bool:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        traceback.print_exc()
        return False
    return True
