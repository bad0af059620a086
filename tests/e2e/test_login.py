#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Somebody logs in at a host: its jobs leave at once, with nothing lost."""

from common import (check, check_counter, check_equal, counter_argv, main, submit, wait_for)

STEPS = 350


def flags(host):
    return next(node["flags"] for node in host.decamp("nodes")["nodes"] if node.get("self"))


def takes_jobs(host):
    return any(flag in ("takes-jobs", "takes_jobs") for flag in flags(host))


def test_login_vacates(lab):
    """A login at the seat freezes, commits and hands over; then the memory is free."""
    for host in lab.hosts:
        host.start_logind()
    home = lab[1]
    # The watch looks for a bus every 10 s.
    home.restart_daemon()
    lab.wait_members()
    job = submit(lab, home, "login", counter_argv("mark-1", STEPS, 0.05), "--every", "3")
    job.wait_seq(1)
    session = home.login("bob", "seat0")
    host = job.wait_host([each for each in lab.hosts if each is not home])
    check(host is not home, f"the job runs on {host.name}")
    wait_for(lambda: not home.pids("mark-1"), 5, "end of the old processes")
    wait_for(lambda: not takes_jobs(home), 20, "word that it takes no jobs")
    check(True, "the host takes no jobs while somebody sits there")
    move = job.history()["moves"][-1]
    check_equal(move["lost_ms"], 0, "nothing was lost")
    home.logout(session)
    wait_for(lambda: takes_jobs(home), 20, "end of the idle time")
    check(True, "after the logout and the idle time it takes jobs again")
    job.wait_collected()
    check_counter(job, STEPS)


def test_others_do_not_count(lab):
    """A remote session, a greeter and a closing one leave jobs where they are."""
    home = lab[1]
    job = submit(lab, home, "stays", counter_argv("mark-2", 200, 0.05), "--every", "3")
    job.wait_seq(1)
    sessions = [home.login("bob", "pts/0", "remote"), home.login("bob", "seat0", "class=greeter")]
    job.wait_seq(2)
    check_equal(job.show()["host"], home.name, "the job stays")
    for session in sessions:
        home.logout(session)
    job.wait_collected()
    check_counter(job, 200)


if __name__ == "__main__":
    main(globals())
