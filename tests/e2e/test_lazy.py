#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs that run before all of their memory is there: moved, checkpointed there, moved again."""

from common import LONG_LEASE, check, check_counter, counter_argv, main, submit, wait_for

STEPS, MEGABYTES = 500, 256
SLOW_KB_PER_S = 2000  # a job's memory takes some seconds then


def said(lab, host, text):
    return any(text in path.read_text(errors="replace")
               for path in lab.log_dir.glob(f"{host.name}*") if path.is_file())


def test_moves(lab):
    """Restored lazily twice; its checkpoints wait for its memory; its result is undisturbed."""
    home = lab[1]
    argv = counter_argv("mark-1", STEPS, 0.05, MEGABYTES)
    job = submit(lab, home, "lazy", argv, "--every", "3")
    job.wait_seq(2, seconds=120)
    for target in (lab[2], lab[3]):
        seq = job.show()["seq"]
        job.migrate(target)
        job.wait_host([target], seconds=120)
        wait_for(lambda host=target: said(lab, host, "all of its memory is here"), 120,
                 "the rest of its memory")
        check(True, f"it ran on {target.name} before all of its memory was there")
        job.wait_seq(seq + 2, seconds=120)
        check(True, "and is checkpointed there")
    job.wait_collected(seconds=300)
    check_counter(job, STEPS, MEGABYTES)


def migrate_slowly(lab, job, target):
    """Until the job runs there and its memory is still coming: all of it from others, and slowly."""
    folder = target.path("/var/lib/decamp/jobs")
    lab.throttle(target, SLOW_KB_PER_S)
    job.migrate(target)
    wait_for(lambda: list(folder.glob("*/lazy")), 120, "a job that is not all there", 0.005)


def keep_nothing(lab, host):
    """No room for checkpoints: what the host restores it must fetch."""
    host.configure(quota_bytes=0)
    host.restart_daemon()
    host.wait_daemon()
    lab.wait_members()


def test_daemon_killed(lab):
    """decampd is killed while it brings memory: the job stands still, and begins anew."""
    home, target = lab[1], lab[4]
    keep_nothing(lab, target)
    job = submit(lab, home, "killed", counter_argv("mark-2", STEPS, 0.05, MEGABYTES), "--every", "3")
    job.wait_seq(2, seconds=120)
    migrate_slowly(lab, job, target)
    wait_for(lambda: target.pids("mark-2"), 60, "its processes", 0.005)
    target.kill_daemon()
    lab.throttle(target, None)
    check(list(target.path("/var/lib/decamp/jobs").glob("*/lazy")), "killed while memory came")
    target.start_daemon()
    target.wait_daemon()
    wait_for(lambda: said(lab, target, "begins anew from its last checkpoint"), 60,
             "word that it begins anew")
    job.wait_collected(seconds=300)
    check_counter(job, STEPS, MEGABYTES)


def test_whole(lab):
    """Where nothing runs before all is there: moved, checkpointed; its result is undisturbed."""
    target = lab[4]
    target.configure(lazy_restore="off")
    target.restart_daemon()
    job = submit(lab, lab[1], "whole", counter_argv("mark-4", STEPS, 0.05, MEGABYTES), "--every",
                 "3")
    job.wait_seq(2, seconds=120)
    seq = job.show()["seq"]
    job.migrate(target)
    job.wait_host([target], seconds=120)
    job.wait_seq(seq + 2, seconds=120)
    check(not said(lab, target, "whole: all of its memory is here"), "its memory came before it ran")
    job.wait_collected(seconds=300)
    check_counter(job, STEPS, MEGABYTES)
    target.configure(lazy_restore="auto")
    target.restart_daemon()
    target.wait_daemon()


def test_holder_dies(lab):
    """A host that holds the job's memory loses power while it comes: the others serve."""
    home, target = lab[1], lab[4]
    keep_nothing(lab, target)
    job = submit(lab, home, "holder", counter_argv("mark-3", STEPS, 0.05, MEGABYTES), "--every", "3")
    job.wait_seq(2, seconds=120)
    migrate_slowly(lab, job, target)
    lab[2].power_cut()
    check(not said(lab, target, "holder: all of its memory is here"), "some was still to come")
    lab.throttle(target, None)
    job.wait_host([target], seconds=120)
    job.wait_collected(seconds=300)
    check_counter(job, STEPS, MEGABYTES)
    lab[2].boot()
    lab[2].start_daemon()
    lab[2].wait_daemon()


if __name__ == "__main__":
    main(globals(), hosts=5, settings=LONG_LEASE)
