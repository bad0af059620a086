#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A process that was started elsewhere becomes a job and outlives its host."""

from pathlib import Path

from common import (Job, check, check_equal, command_of, counter_argv, home_of, is_counted, main,
                    make_folder, wait_for)

STEPS = 350


def at_work(host, marker):
    """The program itself, once it has written something: before, a shell has its PID."""
    def found():
        return [pid for pid in host.pids(marker)
                if command_of(pid).startswith("/usr/bin/python3")
                and written(Path(f"/proc/{pid}/cwd/out.txt"))]
    return wait_for(found, 30, "the process")[0]


def written(path):
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False


# Its standard streams must come from the host's own files, not from the harness.
DETACH = ["sh", "-c", 'exec setsid "$@" </dev/null >/dev/null 2>&1', "sh"]


def test_adopt(lab):
    """It keeps its PID, loses its host, and comes back with its memory."""
    host = lab[1]
    folder = make_folder(host, "adopt", lab.user)
    started = host.spawn([*DETACH, *counter_argv("mark-1", STEPS, 0.05)], user=lab.user,
                         cwd=folder)
    pid = at_work(host, "mark-1")
    inner = host.inner_pid(pid)
    check(host.decamp("check", inner, user=lab.user)["ok"], "check says that it can be adopted")
    host.decamp("adopt", "--name", "adopted", "--every", "2", inner, user=lab.user)
    job = Job(lab, host, "adopted", lab.user)
    job.tell_from = 0
    job.wait_seq(2)
    check(started.running() and host.pids("mark-1") == [pid], "it runs on as the same process")
    host.power_cut()
    other = job.wait_host(lab.hosts[1:], at=lab[2])
    there = wait_for(lambda: other.pids("mark-1"), 5, "its process")[0]
    with open(f"/proc/{there}/status", encoding="ascii") as status:
        line = next(row for row in status if row.startswith("NSpid:"))
    check_equal(int(line.split()[-1]), inner, f"on {other.name} it has its old PID")
    host.boot()
    host.start_daemon()
    host.wait_daemon()
    job.wait_collected()
    path = f"{home_of(lab.user)}/adopt"
    found = [file for file in (host.path(path) / "out.txt",
                               *host.path(path).glob("*decamp-results*/**/out.txt"))
             if file.exists() and is_counted(file.read_bytes(), STEPS)]
    here = {str(file): file.stat().st_size for file in host.path(path).rglob("*")
            if file.is_file()}
    check(found, f"its whole output is at home: {here}")


def test_adopt_twice(lab):
    """A process can be adopted once, and its end is told."""
    host = lab[2]
    folder = make_folder(host, "short", lab.user)
    host.spawn([*DETACH, *counter_argv("mark-2", 120, 0.05)], user=lab.user, cwd=folder)
    pid = at_work(host, "mark-2")
    inner = host.inner_pid(pid)
    host.decamp("adopt", "--name", "short", inner, user=lab.user)
    done = host.run([lab.build / "decamp", "adopt", str(inner)], user=lab.user, check=False)
    check(done.returncode != 0 and str(inner) in done.stderr,
          f"a second adoption is refused: {done.returncode} {done.stdout}{done.stderr}")
    job = Job(lab, host, "short", lab.user)
    job.tell_from = 0
    shown = job.wait_ended(("done", "collected"))
    check(shown["state"] in ("done", "collected"), "it ends as a job")


if __name__ == "__main__":
    main(globals())
