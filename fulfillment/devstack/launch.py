"""Turn this process into another program that dies with its parent; run as a script.

A `preexec_fn` would do the same between fork and exec of a threaded process, which may deadlock.
It must import nothing but the standard library: it runs before every child, without site-packages.
"""

import ctypes
import os
import signal
import struct
import sys

# From linux/prctl.h and linux/capability.h.
PR_SET_PDEATHSIG = 1
PR_SET_SECUREBITS = 28
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
CAP_DAC_READ_SEARCH = 2


def become(uid: int, gid: int) -> None:
    """Give up root, keeping at most the right to pass through other people's directories.

    Without it an unprivileged PostgreSQL reaches neither its program nor its data where the clone
    lies below a 0700 directory. Containers often lack READ_SEARCH and do have OVERRIDE.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    # Capabilities then survive setresuid, and access(2), which initdb asks, reckons with them.
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    header = ctypes.create_string_buffer(struct.pack("=Ii", CAPABILITY_VERSION_3, 0))
    for capability in (CAP_DAC_READ_SEARCH, CAP_DAC_OVERRIDE):
        bit = 1 << capability
        sets = ctypes.create_string_buffer(struct.pack("=6I", bit, bit, bit, 0, 0, 0))
        if libc.capset(header, sets) == 0:
            libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0)
            return


def main(arguments: list[str]) -> None:
    """Run `PARENT DEATH_SIGNAL UID GID COMMAND...`; a uid of 0 keeps the user."""
    parent, death_signal, uid, gid = map(int, arguments[:4])
    command = arguments[4:]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o077)  # what a child writes down is for its own user's eyes only
    if uid:
        become(uid, gid)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above could help
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    main(sys.argv[1:])
