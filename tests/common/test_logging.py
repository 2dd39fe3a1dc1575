"""Lines beside progress bars."""

from __future__ import annotations

import logging
import threading
import time

from tqdm import tqdm

from chatbridge.common.logging import setup_logging
from tests.patience import PATIENCE
from tests.processes import FORK


def hold(locked) -> None:
    tqdm.get_lock().acquire()
    locked.send(True)
    time.sleep(600)


def test_a_process_that_is_killed_while_it_writes_stops_no_other():
    setup_logging(main_process=True)
    tqdm.get_lock()  # as a bar of this process makes it before it forks
    here, there = FORK.Pipe()
    process = FORK.Process(target=hold, args=(there,), daemon=True)
    process.start()
    assert here.recv()
    process.kill()
    process.join()
    line = threading.Thread(target=logging.getLogger("chatbridge").warning, args=("a line",), daemon=True)
    line.start()
    line.join(PATIENCE)
    assert not line.is_alive()
