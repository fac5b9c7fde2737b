"""Kills a process at each line of what it does, always anew; for scripts that tests run in a process of their own."""

import os
import signal
import sys

LAST = 500


def at_every_line(prepare, act, check, files):
    """Fork, and kill the child once it comes to the n-th line of those files, for every n there is; returns how many.

    `prepare` and `check` run in the parent, before and after; the last child dies of nothing, but must succeed.
    """
    for step in range(1, LAST):
        prepare()
        child = os.fork()
        if child == 0:
            _live(step, act, files)
        _, status = os.waitpid(child, 0)
        check()
        if os.WIFEXITED(status):
            assert status == 0, status
            return step - 1
        assert os.WTERMSIG(status) == signal.SIGKILL, status
    raise AssertionError(f"more than {LAST} lines")


def _live(step, act, files):
    left = step

    def trace(frame, event, _):
        nonlocal left
        if not frame.f_code.co_filename.endswith(files):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    failed = 1
    sys.settrace(trace)
    try:
        act()
        failed = 0
    finally:
        sys.settrace(None)
        os._exit(failed)  # it is a copy of the script, which must not go on twice
