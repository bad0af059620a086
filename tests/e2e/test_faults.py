#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Things break in the middle: daemons are killed, disks fill up, packets and bytes are lost."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

from common import (CliError, check, check_counter, check_equal, counter_argv, main, note, refused,
                    submit, wait_for)

STEPS = 400
SEED = 11


def test_daemon_killed(lab):
    """decampd is killed at any moment of a checkpoint and started again: the job never notices."""
    host = lab[1]
    draw = random.Random(SEED)
    job = submit(lab, host, "killed", counter_argv("mark-1", 600, 0.05, 16), "--every", "1")
    job.wait_seq(1)
    pids = host.pids("mark-1")
    for _ in range(6):
        time.sleep(draw.uniform(0.05, 1.5))
        state = job.show().get("step") or "idle"
        host.kill_daemon()
        note(f"killed while {state}")
        time.sleep(draw.uniform(0, 1))
        host.start_daemon()
        host.wait_daemon()
        check_equal(host.pids("mark-1"), pids, "the same processes run on")
    seq = job.show()["seq"]
    job.wait_seq(seq + 1)
    check(True, "checkpoints go on")
    job.wait_collected()
    check_counter(job, 600, 16)


def test_killed_in_restore(lab):
    """decampd of the host that takes a job over is killed while it restores."""
    home = lab[2]
    job = submit(lab, home, "restoring", counter_argv("mark-2", STEPS, 0.05, 32), "--every", "2")
    job.wait_seq(2)
    home.power_cut()
    asked = lab[1]
    killed = 0
    end = time.monotonic() + 40
    while time.monotonic() < end and killed < 2:
        for host in lab.hosts:
            if host is home or host is asked:
                continue
            rows = [row for row in host.decamp("ps", user=lab.user)["jobs"]
                    if row["name"] == "restoring"]
            if rows and rows[0]["state"] == "restoring" and rows[0]["host"] == host.name:
                host.restart_daemon()
                killed += 1
        shown = job.show(at=asked)
        if shown["state"] == "running" and lab.where("mark-2"):
            break
    note(f"decampd was killed {killed} times in a restore")
    job.wait_host([host for host in lab.hosts if host is not home], 60, at=asked)
    check(len(lab.where("mark-2")) == 1, "it runs once")
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    job.wait_collected()
    check_counter(job, STEPS, 32)


def set_everywhere(lab, **settings):
    for host in lab.hosts:
        host.configure(**settings)
        host.restart_daemon()
    lab.wait_members()


def test_no_room_on_peers(lab):
    """No peer has room: the checkpoint fails and says so, the job runs on; with room it goes on."""
    job = submit(lab, lab[3], "no-room", counter_argv("mark-3", STEPS, 0.05, 8), "--every", "60")
    job.wait_seq(1)
    seq = job.show()["seq"]
    set_everywhere(lab, quota_bytes="1M")
    text = refused(lambda: job.ask("ckpt", job.name), "no-room")
    check(any(word in text.lower() for word in ("space", "room", "quota")), f"it says why: {text}")
    check(lab[3].pids("mark-3"), "the job runs on")
    check_equal(job.show()["seq"], seq, "the last committed checkpoint stays")
    set_everywhere(lab, quota_bytes="4G")
    check(job.ask("ckpt", job.name)["seq"] > seq, "with room again a checkpoint is committed")
    job.wait_collected()
    check_counter(job, STEPS, 8)


def test_no_memory_for_images(lab):
    """/run, where images are put in memory, is full: they go to the disk."""
    host = lab[4]
    job = submit(lab, host, "full-run", counter_argv("mark-4", STEPS, 0.05, 24), "--every", "60")
    job.wait_seq(1)
    host.run(["mount", "-o", "remount,size=1m", "/run"])
    host.run(["dd", "if=/dev/zero", "of=/run/filler", "bs=4k"], check=False)
    try:
        check(job.ask("ckpt", job.name)["seq"] >= 2, "a checkpoint is committed all the same")
    finally:
        host.run(["rm", "/run/filler"])
        host.run(["mount", "-o", "remount,size=50%", "/run"])
    job.wait_collected()
    check_counter(job, STEPS, 24)


def test_two_clients(lab):
    """Two clients at once: each gets an answer or a clean error, and the job is whole."""
    job = submit(lab, lab[1], "two", counter_argv("mark-5", STEPS, 0.05), "--every", "30")
    job.wait_seq(1)

    def ask(words):
        try:
            return lab[words[0]].decamp(*words[1:], user=lab.user)
        except CliError as error:
            return error

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, [(1, "ckpt", "two"), (1, "ckpt", "two"), (2, "ckpt", "two"),
                                      (1, "migrate", "two", "host3"),
                                      (2, "migrate", "two", "host4"), (5, "ps")]))
    for answer in answers:
        check(isinstance(answer, dict) or answer.code in (1, 4, 6), f"an answer: {answer!s:.90}")
    wait_for(lambda: len(lab.where("mark-5")) == 1, 15, "one incarnation")
    job.wait_collected()
    check_counter(job, STEPS)


def test_packet_loss(lab):
    """Every tenth packet is lost: checkpoints are committed all the same."""
    lab.lose(10)
    try:
        job = submit(lab, lab[2], "lossy", counter_argv("mark-6", 300, 0.05), "--every", "2")
        job.wait_seq(3, 60)
        check(True, "three checkpoints are committed")
    finally:
        lab.lose(0)
    lab.wait_members()
    job.wait_collected()
    check_counter(job, 300)


def test_flipped_bytes(lab):
    """One holder's disk returns changed bytes: the other holders' copies are used."""
    home = lab[1]
    job = submit(lab, home, "flipped", counter_argv("mark-7", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    holder = lab[job.show()["detail"]["holders"][0]]
    flipped = 0
    for path in (holder.state_dir / "store").rglob("*"):
        if path.is_file() and path.stat().st_size > 256 and "mdb" not in path.name:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size // 2)
                byte = file.read(1)
                file.seek(-1, 1)
                file.write(bytes([byte[0] ^ 0x40]))
            flipped += 1
    check(flipped > 0, f"{flipped} objects are changed on {holder.name}")
    home.power_cut()
    job.wait_host([host for host in lab.hosts if host is not home], 60, at=lab[2])
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals())
