"""A process that has imported Podium and becomes its programs: `forked_programs.py` starts it.

A new Python needs two seconds of CPU time to import the API. A fork of this process needs none, and is else the program
as `podium.servers.process.start` runs it: below its own guard, in its own session, with the environment it was given.

Each message on the socket whose descriptor is the argument carries two descriptors: the guard's input and output, and
the log. The end of the socket ends this process; guards and programs go on.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import sqlalchemy.dialects.postgresql.asyncpg
import uvicorn.lifespan.on
import uvloop

import api.app
import podium.migration
import workers.runner
from podium.cli.main import main
from podium.servers import guard

# What programs import when they run, and this process before.
IMPORTED = (
    sqlalchemy.dialects.postgresql.asyncpg,
    uvicorn.lifespan.on,
    uvloop,
    api.app,
    podium.migration,
    workers.runner,
)
MODULE = ["-m", "podium"]


class BecomeProgramError(BaseException):
    """Leaves the guard's code in the process that is to become the program."""

    def __init__(self, command: dict[str, Any]) -> None:
        super().__init__()
        self.command = command


class ForkingGuard(guard.Guard):
    """A guard whose program is a fork of it."""

    def _spawn(self, command: dict[str, Any]) -> int:
        die_with_guard = guard._die_with_guard(command["if_orphaned"])
        until_ready, ours = os.pipe()
        pid = os.fork()
        if pid == 0:
            die_with_guard()
            raise BecomeProgramError(command)
        self.spawned.append(pid)
        os.close(ours)
        os.read(until_ready, 1)  # returns when the program has closed what it inherited
        os.close(until_ready)
        return pid


def serve(requests: socket.socket) -> None:
    """Fork a guard for each request. Returns in programs only: this process and its guards exit."""
    signal.signal(signal.SIGCHLD, _reap)
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 1, 2)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            _become_guard(*descriptors)
            try:
                guard._send(ended=ForkingGuard(guard._read_plan()).run())
            except BecomeProgramError as program:
                _become_program(program.command)
                return
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _become_guard(connection: int, log: int) -> None:
    os.setsid()
    for theirs, standard in ((connection, 0), (connection, 1), (log, 2)):
        os.dup2(theirs, standard)
    os.close(connection)
    os.close(log)
    guard.LIBC.prctl(guard.PR_SET_CHILD_SUBREAPER, 1)


def _become_program(command: dict[str, Any]) -> None:
    """Everything that a new process would have otherwise."""
    os.setsid()
    os.umask(0o077)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["env"])
    python, *arguments = command["argv"]
    assert arguments[:2] == MODULE, arguments
    sys.argv = [str(Path(podium.__file__).with_name("__main__.py")), *arguments[2:]]
    sys.orig_argv = [python, *arguments]
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))


def _reap(_number: int, _frame: FrameType | None) -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
    main()
