"""A `python` whose process is forked from one that has imported the large libraries already.

Run as the interpreter itself would be, ``python [-u] (SCRIPT | -m MODULE | -c CODE) [ARGUMENT ...]``. It hands the
command line, the environment, the folder and the open files to the fork server and ends as the forked process ends:
with its exit status, or by its signal. Signals that reach it are passed on. Whatever the server cannot do exactly as a
fresh interpreter would is done by a fresh interpreter.

It starts in 10 ms, so it imports next to nothing. REAL and ADDRESS are filled in when it is installed.
"""

import _signal
import _socket
import fcntl
import posix as os
import sys

REAL, ADDRESS = "@REAL@", "@ADDRESS@"
PASSED_ON = (1, 2, 3, 10, 12, 15, 18, 28)
"""HUP, INT, QUIT, USR1, USR2, TERM, CONT, WINCH."""


def fresh() -> None:
    """Become a fresh interpreter."""
    os.execv(REAL, [REAL, *sys.argv[1:]])


def connected() -> _socket.socket | None:
    """To the server; None if there is none."""
    server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        server.connect(ADDRESS)
    except OSError:
        return None
    return server


def inherited(own: int) -> list[int]:
    """Open files that whoever started this process left to it."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor == own:
            continue
        try:
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFD)
        except OSError:
            continue
        if not flags & fcntl.FD_CLOEXEC:
            found.append(descriptor)
    return found


def request(descriptors: list[int]) -> bytes:
    """What the server needs to know, as fields that end in a zero byte."""
    mask = os.umask(0)
    os.umask(mask)
    own, group, session = os.getpid(), os.getpgrp(), os.getsid(0)
    ignored = [number for number in range(1, 32) if _signal.getsignal(number) == _signal.SIG_IGN and number != 13]
    fields = [
        b"%d %d %d %d" % (own, group == own, session == own, mask),
        b" ".join(b"%d" % descriptor for descriptor in descriptors),
        b" ".join(b"%d" % number for number in ignored),
        os.fspath(os.getcwdb()),
        b"%d" % (len(sys.argv) - 1),
        *(word.encode("utf-8", "surrogateescape") for word in sys.argv[1:]),
        *(name + b"=" + value for name, value in os.environ.items()),
    ]
    return b"\0".join(fields)


def main() -> None:
    """The command."""
    words = sys.argv[1:]
    if words and words[0] == "-u":
        words = words[1:]
    # Any other option, a command on standard input, a prompt.
    if not words or (words[0].startswith("-") and words[0] not in ("-c", "-m")):
        fresh()
    server = connected()
    if server is None:
        fresh()
        return
    # Until there is somebody to pass them on to.
    _signal.pthread_sigmask(_signal.SIG_BLOCK, PASSED_ON)
    descriptors = inherited(server.fileno())
    body = request(descriptors)
    rights = b"".join(number.to_bytes(4, sys.byteorder) for number in descriptors)
    head = len(body).to_bytes(8, sys.byteorder)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if descriptors else []
    try:
        server.sendmsg([head], ancillary)
        server.sendall(body)
        answer = server.recv(4)
    except OSError:
        answer = b""
    child = int.from_bytes(answer, sys.byteorder)
    if child == 0:
        _signal.pthread_sigmask(_signal.SIG_UNBLOCK, PASSED_ON)
        fresh()

    def pass_on(number: int, _frame: object) -> None:
        # contextlib would have to be imported.
        try:  # noqa: SIM105
            os.kill(child, number)
        except ProcessLookupError:
            pass

    for number in PASSED_ON:
        if _signal.getsignal(number) != _signal.SIG_IGN:
            _signal.signal(number, pass_on)
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, PASSED_ON)
    # They are the other process's now: who waits for its output's end must not wait for this one.
    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(nothing, descriptor)
    status = b""
    while len(status) < 4:
        part = server.recv(4 - len(status))
        if not part:
            # The server has been stopped, which ends what it started.
            os._exit(255)
        status += part
    code = int.from_bytes(status, sys.byteorder)
    if os.WIFSIGNALED(code):
        number = os.WTERMSIG(code)
        if number != _signal.SIGKILL:
            _signal.signal(number, _signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(code))


main()
