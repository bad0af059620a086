#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""What a server tells decamp(1) of a job, its checkpoints and moves, and a host: for test_cli."""

import time

NOW = int(time.time() * 1000)
JOB = "0123456789abcdef0123456789abcdef"

SUMMARY = {
    "job": JOB, "name": "sim1", "user": "ada", "uid": 1000, "state": "running", "host": "lab-07",
    "home": "lab-01", "seq": 17, "ckpt_ms": NOW - 42000, "ckpt_age_ms": 42000,
    "command": "./sim --grid 1000 " + "x" * 100, "submit_ms": NOW - 3600000, "protected": True,
    "step": "", "step_done": 0, "step_total": 0, "message": "",
}
DETAIL = {
    "cwd": "/home/ada/run", "argv": ["./sim"], "fence": "strict", "token": "5", "every_s": 0,
    "interval_s": 60, "next_ckpt_ms": NOW + 18000, "mem_bytes": 210 << 20, "engine": "criu",
    "pids": [4711, 4712], "holders": ["lab-02", "lab-03"], "guardians": ["lab-04"],
    "stdout": "/home/ada/sim1.out", "stderr": "/home/ada/sim1.err",
    "results": {"written": 3, "set_aside": 1, "deleted": 0, "failed": 0,
                "folder": "/home/ada/decamp-sim1"},
    "pause_us_median": 3200, "pause_us_max": 8100, "sent_bytes_median": 1258291,
    "recovery_point_ms": 42000, "recovery_time_ms": 3100, "moves": 2, "checkpoints": 17,
    "native_count": 15, "criu_count": 2, "fallbacks": 2,
    "fallback_reason": "process 4711 shares its memory with another process",
    "native": {"pause": {"total_us": 700, "freeze_us": 100, "state_us": 60, "regs_us": 20,
                         "files_us": 90, "scan_us": 200, "copy_us": 50, "wait_us": 150,
                         "thaw_us": 30},
               "stopped_by": "ptrace", "not_by_module": "signals wait for process 4711",
               "tracker": "userfaultfd", "rounds": 2, "residue_bytes": 1 << 20, "bounded": True,
               "dirty_pages_per_s": 900000},
}
CKPT = {"seq": 17, "wall_ms": NOW - 42000, "host": "lab-07", "engine": "criu",
        "reason": "interval", "pause_us": 3200, "total_us": 1400000, "mem_bytes": 210 << 20,
        "file_bytes": 4096, "new_bytes": 2 << 20, "delta_bytes": 1536 << 10,
        "sent_bytes": 1 << 20, "restorable": True}
MOVE = {"wall_ms": NOW - 90000, "from": "lab-01", "to": "lab-07", "reason": "user logged in",
        "from_seq": 16, "lost_ms": 0, "resume_ms": 2500}
NODE = {"name": "lab-07", "id": JOB, "room": "r1", "state": "alive", "addr": "10.0.0.7:7431",
        "flags": ["takes-jobs"], "load": 0.25, "mem_free": 8 << 30, "store_free": 9 << 30,
        "store_used": 123 << 20, "jobs": 2, "silent_ms": 900, "self": True}
