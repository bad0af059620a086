#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Any one host loses power at any moment: no output is ever wrong or truncated.

DECAMP_SEED and DECAMP_ROUNDS choose the first round and how many; a failure names its round.
"""

import os
import subprocess
import sys

from common import ROOT, SKIP_CODE


def main():
    if os.geteuid():
        print("SKIP: a lab needs root")
        return SKIP_CODE
    return subprocess.run([str(ROOT / "tests/lab/demo"), "--name", "test_any",
                           "--kill-any", os.environ.get("DECAMP_SEED", "1"),
                           "--count", os.environ.get("DECAMP_ROUNDS", "2"),
                           "--scale", "0.3", "--every", "2"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
