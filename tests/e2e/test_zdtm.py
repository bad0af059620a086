#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A dozen of CRIU's own tests, dumped by the native engine; `make zdtm` runs the whole list.

Once with a restore, once without: then the test looks at itself for traces of the dump.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = Path(os.environ.get("DECAMP_BUILD", ROOT / "build"))
# All native, without exception.
TESTS = ["pthread01", "fpu03", "cow01", "maps04", "memfd00", "unlink_fstat00", "write_read00",
         "epoll", "pipe02", "timerfd", "posix_timers", "sigpending", "pstree", "env00"]


def main():
    command = [str(ROOT / "tests/zdtm/run"), "--exact", "--modes", "h,norst", "--native-min", "100",
               "--results", str(ROOT / "build/zdtm/short.json"),
               "--capture", str(BUILD / "decamp-capture"), *TESTS]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
