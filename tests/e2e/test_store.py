#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Where checkpoints lie: no room on peers, no memory for the images, a disk that changes bytes."""

from pathlib import Path

from common import (CliError, LONG_LEASE, check, check_counter, check_equal, counter_argv,
                    damage_store, main, note, refused, submit, wait_for)

STEPS = 300


def set_everywhere(lab, **settings):
    for host in lab.hosts:
        host.configure(**settings)
        host.restart_daemon()
    lab.wait_members()


def no_room_text(job):
    # The job is called no-room itself.
    text = refused(lambda: job.ask_once("ckpt", job.name), job.name)
    said = text.lower().replace(job.name, "")
    return text if any(word in said for word in ("space", "room", "quota")) else None


def committed(job):
    """The number of a checkpoint; tried again while peers are not known to have room again."""
    def taken():
        try:
            return job.ask_once("ckpt", job.name)["seq"]
        except CliError as error:
            note(f"not yet: {error}")
            return None
    return wait_for(taken, 60, f"{job.name}: a checkpoint", 0.5)


def test_no_room_on_peers(lab):
    """No peer has room: the checkpoint fails and says so, the job runs on; with room it goes on."""
    job = submit(lab, lab[3], "no-room", counter_argv("mark-3", STEPS, 0.05, 8), "--every", "3600")
    job.wait_seq(1)
    set_everywhere(lab, quota_bytes="1M")
    seq = job.show()["seq"]
    # Who has just been started may not be known to have no room, and not yet take anything.
    text = wait_for(lambda: no_room_text(job), 60, "a refusal that says why")
    check(True, f"it says why: {text}")
    check(lab[3].pids("mark-3"), "the job runs on")
    check_equal(job.show()["seq"], seq, "the last committed checkpoint stays")
    set_everywhere(lab, quota_bytes="4G")
    check(committed(job) > seq, "with room again a checkpoint is committed")
    job.wait_collected()
    check_counter(job, STEPS, 8)


def test_no_memory_for_images(lab):
    """/run, where images are put in memory, is full: they go to the disk."""
    host = lab[4]
    job = submit(lab, host, "full-run", counter_argv("mark-4", STEPS, 0.05, 24), "--every", "3600")
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


def first_sent(job):
    return next(point["sent_bytes"] for point in job.history()["checkpoints"]
                if point["seq"] == 1)


def test_files_are_shared(lab):
    """Two users' jobs run one program: its files are kept once, and as long as one of them needs them."""
    first = submit(lab, lab[1], "first", counter_argv("mark-1", STEPS, 0.05), "--every", "3600")
    first.wait_seq(1)
    # Each is kept by three of the four others: two holders at least are the same, or, as hosts are
    # chosen by load as well, one. A third job finds more of them.
    for name, home in (("second", lab[2]), ("third", lab[3])):
        second = submit(lab, home, name, counter_argv("mark-2", STEPS, 0.05), "--every", "2",
                        user="bob")
        second.wait_seq(2)
        sent = [first_sent(first), first_sent(second)]
        note(f"a first checkpoint sends {sent[0]} bytes, then {sent[1]}")
        if sent[1] < 0.8 * sent[0]:
            break
        second.kill()
        second.wait_ended()
    check(sent[1] < 0.8 * sent[0], "what another user's job brought is not sent to all again")
    program = Path("/usr/bin/python3").resolve().read_bytes()
    needle = program[len(program) // 2:][:64]
    check(not any(needle in path.read_bytes() for host in lab.hosts
                  for path in (host.state_dir / "overlay/segments").iterdir()),
          "no host keeps a piece of it in plaintext")
    first.kill()
    first.wait_ended()
    home.power_cut()
    second.wait_host([host for host in lab.hosts if host is not home], 60, at=lab[1])
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    second.wait_collected()
    check_counter(second, STEPS)


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
    main(globals(), settings=LONG_LEASE)
