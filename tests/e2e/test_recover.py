#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""All guardians of a job are gone: its checkpoints are found with the hosts that keep them, and
nothing runs twice for that."""

import time
from pathlib import Path

from common import (Failed, check, check_counter, check_equal, counter_argv, home_of, is_counted,
                    main, refused, submit, wait_for)

HOSTS = 8
STORES = (6, 7, 8)  # the others have no room
STEPS = 200
PAUSE_S = 0.05
ATTEMPTS = 200


def guardians_of(lab, job_id):
    """The hosts that have the job's register on their disks, once all five acceptors do."""
    registers = "/var/lib/decamp/overlay/registers/data.mdb"

    def five():
        found = [host for host in lab.hosts if job_id in host.read(registers)]
        return found if len(found) == 5 else None
    return wait_for(five, 30, "five guardians", 0.1)


def submit_apart(lab):
    """A job whose home is none of its guardians, and neither is one of those that store. Guardians
    are five neighbours on a ring, from a place that goes by the job's id. Where each host is on the
    ring is chance, too: there are rings on which a given host cannot be such a home."""
    homes = [host for host in lab.hosts if host.index not in STORES]
    for attempt in range(ATTEMPTS):
        job = submit(lab, homes[attempt % len(homes)], f"apart-{attempt}",
                     counter_argv(f"mark-{attempt}-", STEPS, PAUSE_S), "--every", "1")
        found = guardians_of(lab, bytes.fromhex(job.show()["job"]))
        if job.home not in found and any(lab[i] not in found for i in STORES):
            return job, found
        job.kill()
    raise Failed(f"none of {ATTEMPTS} jobs has its guardians apart")


def what_is_left(job, standing, seq):
    """decamp recover at the job's home, until its register is said to stand so, and this checkpoint
    or a later one is known to be committed: all that is asked of holders may not come at once."""
    def told():
        answer = job.ask("recover", job.name)
        known = any(each["committed"] and each["seq"] >= seq for each in answer["checkpoints"])
        return answer if answer["register"] == standing and known else None
    return wait_for(told, 30, f"{job.name}: register {standing}", 0.2)


def said(lab, job, words):
    """What decamp recover tells people, if these words are in it."""
    text = job.home.run([lab.build / "decamp", "recover", job.name], user=job.user,
                        check=False).stdout
    return text if words in text else ""


def processor_time(pid):
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13]


def check_still(lab, job):
    """One host has the job, and it does not run there."""
    check_equal(lab.where(job.marker), [job.home], "only its home has processes of it")

    def stands():
        before = [processor_time(pid) for pid in job.home.pids(job.marker)]
        time.sleep(0.5)
        return before == [processor_time(pid) for pid in job.home.pids(job.marker)]
    wait_for(stands, 20, "the end of its lease", 0.1)
    check(True, "and it is frozen there")


def check_files(lab, job, seq):
    """What it had written, from the newest checkpoint, though no register answers."""
    path = f"{home_of(job.user)}/{job.name}/out.txt"
    text = job.read(path, job.home)
    lines = text.count(b"\n")
    check(lines > 0 and is_counted(text),
          f"decamp cat has {lines} lines of out.txt of checkpoint {seq} or later")


def test_guardians_gone(lab):
    """All five lose power. What is left is told; then they return, and it goes on."""
    for host in lab.hosts:
        if host.index not in STORES:
            host.settings["quota_bytes"] = 0
    lab.start_daemons()
    lab.make_cluster()
    lab.user = lab.job_user()
    job, guards = submit_apart(lab)
    job.wait_seq(2)
    # Two holders are enough for a checkpoint, and they may both be guardians.
    shown = wait_for(lambda: (lambda shown: len(shown["detail"]["holders"]) == len(STORES)
                              and shown)(job.show()), 60, "a checkpoint that all three keep")
    seq = shown["seq"]
    what_is_left(job, "answers", seq)
    check(True, "recover finds checkpoints while the register answers, too")
    for host in guards:
        host.power_cut()
    answer = what_is_left(job, "no-majority", seq)
    committed = [each for each in answer["checkpoints"] if each["committed"]]
    check(committed[0]["seq"] >= seq,
          f"checkpoint {committed[0]['seq']} is known to be committed, with no guardian left")
    check(all(each["holders"] > 0 for each in answer["checkpoints"]), "somebody has each")
    check_equal(answer["refused"], 0, "and each is what its holder says")
    if job.user != "root":
        refused(lambda: job.home.decamp("recover", job.name, user="bob"), "no such job")
    check_still(lab, job)
    check_files(lab, job, committed[0]["seq"])
    for host in guards:
        host.boot()
        host.start_daemon()
    for host in guards:
        host.wait_daemon()
    what_is_left(job, "answers", seq)
    text = wait_for(lambda: said(lab, job, "Its guardians answer"), 30, "word of its guardians")
    check(True, text.splitlines()[-1])
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals(), hosts=HOSTS, cluster=False)
