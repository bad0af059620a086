#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where checkpoints lie: no room on peers, no memory for the images, a disk that changes bytes."""

from common import (check, check_counter, check_equal, counter_argv, damage_store, main, refused,
                    submit)

STEPS = 300


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


def test_flipped_bytes(lab):
    """One holder's disk returns changed bytes: the other holders' copies are used."""
    home = lab[1]
    job = submit(lab, home, "flipped", counter_argv("mark-7", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    holder = lab[job.show()["detail"]["holders"][0]]
    flipped = damage_store(holder)
    check(flipped > 0, f"{flipped} blocks are changed on {holder.name}")
    home.power_cut()
    job.wait_host([host for host in lab.hosts if host is not home], 60, at=lab[2])
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals())
