#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""The guardians of a job, five of five hosts: some die, all die, one comes back with an old disk."""

import shutil

from common import (check, check_counter, check_equal, counter_argv, main, note, submit, wait_for)

STEPS = 260


def others(lab, *hosts):
    return [each for each in lab.hosts if each not in hosts and each.pid]


def start_again(*hosts):
    for host in hosts:
        host.boot()
        host.start_daemon()
    for host in hosts:
        host.wait_daemon()


def states_of(lab, name, asked):
    """Of all the ids that a host of this name has had."""
    return [node["state"] for node in asked.decamp("nodes")["nodes"] if node["name"] == name]


def wait_states(lab, host, asked):
    wait_for(lambda: sorted(states_of(lab, host.name, asked)) == ["alive", "left"], 20,
             "a new id, and the leave of the old one")
    check(True, "it has a new id")


def test_two_of_five_die(lab):
    """Two of five guardians lose power: the job commits and moves all the same."""
    home = lab[1]
    job = submit(lab, home, "two-die", counter_argv("mark-1", STEPS, 0.05), "--every", "2")
    job.wait_seq(1)
    dead = [lab[4], lab[5]]
    for host in dead:
        host.power_cut()
    seq = job.show()["seq"]
    job.wait_seq(seq + 2)
    check(True, "two checkpoints are committed by the three that are left")
    check_equal(job.migrate(lab[2])["host"], "host2", "it moves")
    job.wait_host([lab[2]])
    job.wait_seq(seq + 4)
    check(True, "and commits there")
    start_again(*dead)
    lab.wait_members()
    job.wait_collected()
    check_counter(job, STEPS)


def test_all_restart(lab):
    """All hosts lose power at once: the job goes on from its last committed checkpoint."""
    home = lab[2]
    job = submit(lab, home, "all-restart", counter_argv("mark-2", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)
    seq = job.show()["seq"]
    for host in lab.hosts:
        host.power_cut()
    check(not lab.where("mark-2"), "nothing runs anywhere")
    start_again(*lab.hosts)
    lab.wait_members()
    host = job.wait_host(lab.hosts, 40)
    check(job.show()["seq"] >= seq, f"nothing that was committed is lost; it runs on {host.name}")
    wait_for(lambda: len(lab.where("mark-2")) == 1, 30, "one incarnation")
    job.wait_collected()
    check_counter(job, STEPS)


def test_disk_rolled_back(lab):
    """A guardian comes back with its disk of some checkpoints ago. It must not vote: what it has
    promised since is forgotten. It is told so, leaves for good, and joins under a new id."""
    home, victim = lab[1], lab[4]
    job = submit(lab, home, "old-disk", counter_argv("mark-3", STEPS + 200, 0.05), "--every", "2")
    job.wait_seq(1)
    copy = victim.copy_disk("copy")
    job.wait_seq(job.show()["seq"] + 6)  # longer than a hold
    victim.power_cut()
    victim.roll_back_disk(copy)
    victim.boot()
    victim.start_daemon()
    wait_for(lambda: not victim.daemon.running(), 20, "the end of decampd on the old disk")
    log = (lab.log_dir / f"{victim.name}.log").read_text()
    check("this disk is an older copy" in log, "decampd says why it ends")
    wait_for(lambda: states_of(lab, victim.name, home) == ["left"], 10, "its leave")
    check(True, "the others see that it has left")
    victim.start_daemon()
    wait_for(lambda: not victim.daemon.running(), 20, "the end of decampd, again")
    check_equal(states_of(lab, victim.name, home), ["left"], "it does not come back under that id")
    job.wait_seq(job.show()["seq"] + 1)
    check(True, "the job goes on meanwhile")
    victim.path("/var/lib/decamp/identity").unlink()
    victim.start_daemon()
    victim.wait_daemon()
    lab.admit(victim)
    lab.wait_members()
    wait_states(lab, victim, home)
    job.migrate(victim)
    job.wait_host([victim])
    check(True, "and takes jobs")
    job.wait_collected()
    check_counter(job, STEPS + 200)


def test_founder_without_registers(lab):
    """The host with the cluster key has lost its registers, as when only its identity was kept. It
    is told, and goes on under a new id, which it gives itself; it can still admit others."""
    founder, asked = lab[1], lab[2]
    founder.kill_daemon()
    shutil.rmtree(founder.path("/var/lib/decamp/overlay/registers"))
    founder.start_daemon()
    wait_for(lambda: not founder.daemon.running(), 20, "the end of decampd without registers")
    founder.start_daemon()
    founder.wait_daemon()
    lab.wait_members()
    wait_states(lab, founder, asked)
    check(founder.decamp("cluster invite")["token"], "it admits others")
    job = submit(lab, founder, "founder", counter_argv("mark-5", 60, 0.05), "--every", "2")
    job.wait_collected()
    check_counter(job, 60)


def test_each_restarts_in_turn(lab):
    """A job's whole life while every host, its own and its home too, loses power in turn."""
    home, steps = lab[3], 700
    job = submit(lab, home, "in-turn", counter_argv("mark-4", steps, 0.05), "--every", "2")
    job.wait_seq(1)
    for host in lab.hosts:
        asked = others(lab, host)[0]
        had_it = bool(host.pids("mark-4"))
        host.power_cut()
        if had_it:
            note(f"{host.name} had it: now on {job.wait_host(others(lab), at=asked).name}")
        start_again(host)
        lab.wait_members()
        check(len(lab.where("mark-4")) <= 1, f"{host.name} is back, and the job runs once")
    job.wait_collected(90)
    check_counter(job, steps)
    check(not lab.where("mark-4"), "no process of it is left")


if __name__ == "__main__":
    main(globals())
