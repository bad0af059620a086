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
ATTEMPTS = 60


def guardians_of(lab, job_id):
    """The hosts that have the job's register on their disks: its acceptors."""
    registers = "/var/lib/decamp/overlay/registers/data.mdb"
    return [host for host in lab.hosts if job_id in host.read(registers)]


def submit_apart(lab):
    """A job at home on the first host, which is none of its guardians, and neither is one of those
    that store: who is, goes by the job's id, and that is chance."""
    for attempt in range(ATTEMPTS):
        job = submit(lab, lab[1], f"apart-{attempt}",
                     counter_argv(f"mark-{attempt}-", STEPS, PAUSE_S), "--every", "1")
        found = guardians_of(lab, bytes.fromhex(job.show()["job"]))
        check_equal(len(found), 5, f"{job.name}: five guardians")
        if job.home not in found and any(lab[i] not in found for i in STORES):
            return job, found
        job.kill()
    raise Failed(f"none of {ATTEMPTS} jobs has its guardians apart")


def what_is_left(job, standing):
    """decamp recover at the job's home, until its register is said to stand so."""
    def told():
        answer = job.ask("recover", job.name)
        return answer if answer["register"] == standing else None
    return wait_for(told, 30, f"{job.name}: register {standing}", 0.2)


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
    text = job.home.run([lab.build / "decamp", "cat", f"{job.name}:{path}"],
                        user=job.user).stdout.encode()
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
    seq = job.wait_seq(2)["seq"]
    answer = what_is_left(job, "answers")
    check(answer["checkpoints"], "recover finds checkpoints while the register answers, too")
    for host in guards:
        host.power_cut()
    answer = what_is_left(job, "no-majority")
    committed = [each for each in answer["checkpoints"] if each["committed"]]
    check(committed and committed[0]["seq"] >= seq,
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
    what_is_left(job, "answers")
    text = job.home.run([lab.build / "decamp", "recover", job.name], user=job.user).stdout
    check("Its guardians answer" in text, text.splitlines()[-1])
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals(), hosts=HOSTS, cluster=False)
