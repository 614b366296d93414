"""The thread that writes bundles while a run trains on.

`recorder` puts bundles in. There is a thread only while there is something to write. It takes no part in what
several processes do together, and it is idle whenever this process is forked. This module does not know what
is in a bundle.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

from cnsn_cli.data.split import before_workers
from cnsn_cli.files.temporary import marked_elsewhere
from cnsn_cli.phases import phase
from cnsn_cli.training.bundle import Bundle


class WriterThread:
    """Writes one bundle at a time, and has room for one that waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards the next four
        self._waiting: Bundle | None = None
        self._writing: Bundle | None = None
        self._busy = False
        self._error: BaseException | None = None
        self._running = False
        _all.add(self)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Inside this context, bundles are written in the thread; elsewhere `put` writes them itself.

        At the end, all is written. Raises the error of the thread, unless there is another one already. Only
        a KeyboardInterrupt does not wait for the disk.
        """
        with marked_elsewhere():
            self._running = True
            try:
                yield
            except BaseException as error:
                if not isinstance(error, KeyboardInterrupt):
                    self.wait()
                raise
            finally:
                self._running = False
            self.wait()
        self.check()

    def put(self, bundle: Bundle) -> None:
        """Write `bundle` soon. Of two bundles that wait the newer one wins, and the best epoch is kept.

        Raises the error of the thread: nothing more is written after it.
        """
        self.check()
        if not self._running:
            bundle.write()
            return
        with self._changed:
            self._waiting = bundle.after(self._waiting) if self._waiting else bundle
            if not self._busy:
                # A daemon: after a second Ctrl-C, Python's exit does not wait for the disk.
                threading.Thread(target=self._work, name="writer", daemon=True).start()
                self._busy = True

    def wait(self) -> None:
        """Wait until the thread has nothing to do."""
        with self._changed:
            self._changed.wait_for(lambda: not self._busy)

    def forget(self) -> None:
        """Leave out the bundle that waits, and the one that is written if its files have no names yet."""
        with self._changed:
            self._waiting = None
            if self._writing:
                self._writing.forgotten.set()

    def check(self) -> None:
        """Raises the error that ended the thread, if there was one."""
        if self._error:
            raise self._error

    def _work(self) -> None:
        while self._next():
            try:
                assert self._writing
                self._writing.write()
            except BaseException as error:
                self._error = error

    def _next(self) -> bool:
        """Take the bundle to write next; False if there is none, or if writing failed."""
        with self._changed:
            # This frees the bundle before, while the thread is busy: freeing memory takes locks, too.
            self._writing, self._waiting = None if self._error else self._waiting, None
            if not self._writing:
                self._busy = False
                self._changed.notify_all()
            return self._busy


_all: WeakSet[WriterThread] = WeakSet()


def _wait_for_all() -> None:
    with phase("waiting for the disk"):
        for thread in tuple(_all):
            thread.wait()


# Workers that read images are forked. A child has the locks of all threads as they were, but only one thread:
# a lock that the writer held, such as those of memory, would stay closed there for ever.
os.register_at_fork(before=_wait_for_all)
before_workers.append(_wait_for_all)  # Python loses a Ctrl-C that interrupts the line above
