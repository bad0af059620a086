#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The native engine with jobs of ordinary users: many checkpoints, moves, deaths of the tracer."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from common import (Failed, LONG_LEASE, ROOT, check, check_counter, check_equal, counter_argv,
                    home_of, main, make_folder, note, submit, traces, wait_for)

SEED = 5
STEADY_SECONDS = 60


def tracers(host):
    """Processes of the engine on a host."""
    found = []
    for pid in traces.pids_of(host.cgroup):
        try:
            if Path(f"/proc/{pid}/comm").read_text().strip() == "decamp-capture":
                found.append(pid)
        except OSError:
            pass
    return found


def detail(job):
    return job.show(at=job.host())["detail"]


def little_is_left(told):
    return told["native"]["residue_bytes"] < told["mem_bytes"] / 2


def check_native(job, least=1):
    told = detail(job)
    check(told.get("native_count", 0) >= least and not told.get("fallbacks"),
          f"{job.name}: native took {told.get('native_count')} checkpoints"
          f"{', but: ' + told['fallback_reason'] if told.get('fallbacks') else ''}")
    return told


def steady(lab, host, name, *options):
    """A program that would notice a lost register or an EINTR."""
    folder = make_folder(host, name, lab.user)
    program = host.path(folder) / "steady"
    subprocess.run(["gcc", "-O2", "-pthread", "-o", program, ROOT / "tests/e2e/steady.c"],
                   check=True)
    job = submit(lab, host, name, [f"{folder}/steady", folder, str(STEADY_SECONDS)], *options,
                 cwd=folder)
    job.marker = f"{folder}/steady"
    job.tell_from = 0
    return job


def check_steady(job):
    text = (job.home.path(f"{home_of(job.user)}/{job.name}") / "out.txt").read_text()
    *steps, last = text.splitlines()
    bad = [line for line in (*steps, last) if line.startswith("BAD")]
    check_equal(bad, [], f"{job.name}: no call was interrupted, no register changed")
    check(len(steps) >= STEADY_SECONDS * 50, f"{job.name}: {len(steps)} steps")
    check_equal([int(line.split()[0]) for line in steps], list(range(len(steps))),
                f"{job.name}: no step is missing or twice there")
    check(text.endswith("all was well\n"), f"{job.name}: all was well")


def test_moves(lab):
    """Many checkpoints, migrate, login, power cut; the output is that of an undisturbed run."""
    home = lab[1]
    job = submit(lab, home, "native", counter_argv("mark-1", 900, 0.03, 32), "--every", "1")
    job.wait_seq(5)
    told = check_native(job, 3)
    note(f"pause {told['native']['pause']}, memory by {told['native']['tracker']}")
    # It writes a quarter of it between two lines: more is left if its tracer has to wait.
    wait_for(lambda: little_is_left(detail(job)), 60, "a pause with little of the memory left", 1)
    check(True, "less than half of the memory is left for the pause")
    cpu = {max(os.sched_getaffinity(0))}
    for pid in home.pids(job.marker):
        os.sched_setaffinity(pid, cpu)
    job.migrate(lab[3])
    job.wait_host([lab[3]])
    job.wait_seq(job.show()["seq"] + 2)
    check_native(job)
    check_equal([os.sched_getaffinity(pid) for pid in lab[3].pids(job.marker)], [cpu],
                "it is tied to the same processor")
    session = None
    for host in lab.hosts:
        host.start_logind()
    try:
        session = lab[3].login("bob", "seat0")
        where = job.wait_host([host for host in lab.hosts if host is not lab[3]])
    finally:
        if session:
            lab[3].logout(session)
    job.wait_seq(job.show()["seq"] + 2)
    check_native(job)
    if where is not home:
        where.power_cut()
        job.wait_host([host for host in lab.hosts if host.pid], 60, at=home)
        where.boot()
        where.start_daemon()
        where.wait_daemon()
    job.wait_collected(90)
    check_counter(job, 900, 32)
    check({row["engine"] for row in job.history()["checkpoints"]} <= {"native", "files"},
          "history: all of them by native")


def test_nothing_noticed(lab):
    """No EINTR and no lost register, after many checkpoints and a move."""
    job = steady(lab, lab[2], "steady", "--every", "1")
    job.wait_seq(6)
    check_native(job, 4)
    job.migrate(lab[4])
    job.wait_host([lab[4]])
    job.wait_collected(90)
    check_steady(job)


def test_script(lab):
    """script(1) takes EINTR from poll for its end; it survives checkpoints."""
    folder = make_folder(lab[1], "typed", lab.user)
    job = submit(lab, lab[1], "typed",
                 ["/usr/bin/script", "-q", "-c",
                  "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; sleep 0.1; done",
                  f"{folder}/typescript"], "--every", "1", cwd=folder)
    job.wait_seq(3)
    told = detail(job)
    note(f"script: native {told.get('native_count')}, criu {told.get('criu_count')}: "
         f"{told.get('fallback_reason', 'all native')}")
    check(not told.get("criu_count"), "all by native: CRIU's EINTR would have ended it")
    job.wait_collected()
    text = (lab[1].path(folder) / "typescript").read_text()
    numbers = [line.strip() for line in text.splitlines() if line.strip().isdigit()]
    check_equal(numbers, [str(i) for i in range(1, 301)], "script(1) recorded all of it")


def in_pause(pid, seconds=4):
    """Until a thread of it is in a ptrace stop; False if none was seen in time."""
    end = time.monotonic() + seconds
    with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
        while time.monotonic() < end:
            stat.seek(0)
            if stat.read().rsplit(")", 1)[1].split()[0] == "t":
                return True
    return False


def last_words(host, job):
    folder = Path(home_of(job.user)) / job.name / "out.txt"
    for where in {host, job.home}:
        if where.path(folder).exists():
            return where.path(folder).read_text().splitlines()[-1:]
    return None


def check_alive(host, job, pids):
    """The same processes as ever; otherwise the last words of the program."""
    if host.pids(job.marker) != pids:
        note(f"it ended: exit status {job.show().get('exit_status')}, "
             f"last words: {last_words(host, job)}")
    check_equal(host.pids(job.marker), pids, "the same processes run on")


def wait_more(host, job):
    """One checkpoint more; if the job has ended instead, why."""
    try:
        job.wait_seq(job.show()["seq"] + 1)
    except Failed:
        note(f"last words: {last_words(host, job)}")
        raise


def kill_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_killed(lab):
    """decamp-capture and decampd are killed at random moments, and in the pause."""
    host = lab[5]
    draw = random.Random(SEED)
    job = steady(lab, host, "hit", "--every", "1")
    job.wait_seq(2)
    check_native(job)
    pids = host.pids(job.marker)
    for _ in range(4):
        time.sleep(draw.uniform(1, 2.5))
        kill_all(tracers(host))
        check_alive(host, job, pids)
    paused = 0
    for _ in range(6):
        check_alive(host, job, pids)
        # A tracer that has attached to the memory: no call is injected any more.
        wait_more(host, job)
        known = tracers(host)
        if known and in_pause(pids[0]):
            # Also between the stop of a thread and the repair of its call: the fence.
            time.sleep(draw.choice([0, draw.uniform(0, 0.0004)]))
            kill_all(known)
            paused += 1
    note(f"killed in the pause: {paused} times")
    for all_of_us in (False, True, False, True):
        in_pause(pids[0])
        if all_of_us:
            kill_all(tracers(host))
        host.restart_daemon()
        check_alive(host, job, pids)
    check_stopped(host, job)
    wait_more(host, job)
    check(detail(job)["native_count"] >= 2, "native goes on")
    engines = [row["engine"] for row in job.history()["checkpoints"]]
    note(f"engines: {engines}")
    job.wait_collected(90)
    check_steady(job)


def check_stopped(host, job):
    for pid in host.pids(job.marker):
        for task in Path(f"/proc/{pid}/task").iterdir():
            state = (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
            check(state not in "tT" or tracers(host), f"thread {task.name} is not left stopped")


def test_fallback(lab):
    """What native does not cover is CRIU's, or refused, and the reason is shown."""
    folder = make_folder(lab[2], "refused", lab.user)
    code = ("import mmap, os, time, ctypes\n"
            "libc = ctypes.CDLL(None, use_errno=True)\n"
            "params = (ctypes.c_char * 120)()\n"
            "fd = libc.syscall(425, 4, params)\n"
            "open('ring', 'w').write(f'{fd}\\n')\n"
            "time.sleep(600)\n")
    job = submit(lab, lab[2], "refused", ["/usr/bin/python3", "-c", code, "mark-9"], "--every", "1",
                 cwd=folder)
    if int(wait_for(lambda: ring_of(job), 20, "its ring")) < 0:
        note("this machine has no io_uring")
    else:
        wait_for(lambda: "io_uring" in reason_of(job), 30, "a reason that names the io_uring")
        check(True, "the reason names the io_uring")
    check(job.state() in ("running", "checkpointing"), "the job runs on")
    job.kill()


def ring_of(job):
    """What the job has written, as it sees it itself."""
    for pid in job.home.pids(job.marker):
        path = Path(f"/proc/{pid}/cwd/ring")
        if path.exists():
            return path.read_text()
    return ""


def reason_of(job):
    shown = job.show()
    return shown.get("message", "") + shown["detail"].get("fallback_reason", "")


if __name__ == "__main__":
    main(globals(), needs=("gcc", "script"), settings={"engine": "auto", **LONG_LEASE})
