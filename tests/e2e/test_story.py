#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The story of the demo with less work: a power cut, a login, a migration, three real programs."""

import os
import subprocess
import sys

from common import ROOT, SKIP_CODE

SCALE = "0.7"


def main():
    if os.geteuid():
        print("SKIP: a lab needs root")
        return SKIP_CODE
    return subprocess.run([str(ROOT / "tests/lab/demo"), "--scale", SCALE, "--every", "2",
                           "--name", "test_story"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
