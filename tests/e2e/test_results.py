#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Results come home, and can be looked at from any host before."""

import os

from common import (CliError, check, check_counter, check_equal, counter_argv, home_of, is_counted,
                    main, submit, wait_for)

STEPS = 220
SLOW_KB_PER_S = 20


def decamp(host, lab, *arguments, user=None):
    """Its output, once it is not refused: a holder may not answer for a moment."""
    def told():
        done = host.run([lab.build / "decamp", *arguments], user=user or lab.user, check=False)
        return done if done.returncode == 0 else None
    return wait_for(told, 60, f"decamp {' '.join(arguments)} on {host.name}").stdout


def test_look_from_anywhere(lab):
    """ls, cat and logs tell the state of the last checkpoint, from any host, while it runs."""
    job = submit(lab, lab[1], "look", counter_argv("mark-1", STEPS, 0.08), "--every", "2")
    job.wait_seq(3)
    path = f"{home_of(lab.user)}/look/out.txt"
    for host in (lab[1], lab[5]):
        files = {file["path"]: file for file in job.ask("ls", job.name, at=host)["files"]}
        check(path in files, f"ls on {host.name} lists the file")
        text = decamp(host, lab, "cat", f"{job.name}:{path}").encode()
        check(text and is_counted(text),
              f"cat on {host.name} prints what was written by then: {len(text)} bytes")
        lines = decamp(host, lab, "logs", job.name).split()
        check(lines[:3] == ["0", "1", "2"], f"logs on {host.name} prints the standard output")
    job.wait_collected()
    check_counter(job, STEPS)
    home = lab[1].path(f"{home_of(lab.user)}/look")
    check_equal(home.joinpath("out.txt").stat().st_uid, home.stat().st_uid,
                "results belong to the user")


def test_changed_at_home(lab):
    """A file that changed at home meanwhile is not overwritten: the job's goes beside it."""
    home = lab[2]
    job = submit(lab, home, "changed", counter_argv("mark-2", STEPS, 0.03), "--every", "3")
    job.wait_seq(1)
    path = f"{home_of(lab.user)}/changed/out.txt"
    home.write(path, "mine\n", user=lab.user)
    job.wait_collected()
    check_equal(home.read(path), b"mine\n", "the file at home is as its owner left it")
    aside = list(home.path(f"{home_of(lab.user)}/changed").glob("*decamp-results*/**/out.txt"))
    check_equal(len(aside), 1, "there is a folder beside it")
    check(is_counted(aside[0].read_bytes(), STEPS), "it holds the job's version")
    results = job.ask("show", job.name)["detail"]["results"]
    check(results["set_aside"] >= 1, f"decamp says so: {results}")


def test_home_away(lab):
    """The submitting host is off when the job ends: the results wait and come home with it."""
    home = lab[3]
    job = submit(lab, home, "away", counter_argv("mark-3", STEPS, 0.05), "--every", "2")
    job.wait_seq(1)
    job.migrate(lab[4])
    job.wait_host([lab[4]])
    home.power_cut()
    job.wait_ended("done", at=lab[1])
    check(not lab.where("mark-3"), "it has ended")
    home.boot()
    home.start_daemon()
    home.wait_daemon()
    job.wait_collected()
    check_counter(job, STEPS)


def test_deleted_and_exit(lab):
    """A file that the job deletes goes at home too; the exit code comes home."""
    home = lab[4]
    folder = home.path(home_of(lab.user)) / "deletes"
    folder.mkdir()
    (folder / "old").write_text("old\n")
    owner = folder.parent.stat()
    for each in (folder, folder / "old"):
        os.chown(each, owner.st_uid, owner.st_gid)
    job = submit(lab, home, "deletes", ["/bin/sh", "-c", "rm old; echo new >new; sleep 2; exit 3"],
                 cwd=f"{home_of(lab.user)}/deletes")
    shown = job.wait_collected()
    check_equal(shown["exit_code"], 3, "the exit code")
    wait_for(lambda: not (folder / "old").exists(), 5, "the deletion")
    check_equal((folder / "new").read_text(), "new\n", "the new file")


def test_history_meanwhile(lab):
    """While its results come home its history names what it did elsewhere."""
    home = lab[2]
    home.configure(quota_bytes=0)  # what it reads of the job it must fetch
    home.restart_daemon()
    lab.wait_members()
    job = submit(lab, home, "meanwhile", counter_argv("mark-5", STEPS, 0.05), "--every", "2")
    job.wait_seq(1)
    job.migrate(lab[4])
    job.wait_host([lab[4]])
    job.wait_seq(job.show()["seq"] + 1)
    lab.throttle(home, SLOW_KB_PER_S)
    job.wait_ended("done", at=lab[1])
    told = ended = 0
    while job.show()["state"] != "collected":
        ended += 1
        try:
            moves = len(job.ask_once("history", job.name)["moves"])
        except CliError as error:
            check(error.may_pass(), f"{error}")
        else:
            check_equal(moves, 1, "moves of its history")
            told += 1
        if told == 3:
            lab.throttle(home, None)
    lab.throttle(home, None)
    check(ended, f"asked {ended} times before it was home, answered {told} times")
    job.wait_collected()
    check_equal(len(job.history()["moves"]), 1, "moves of its history, at home")
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals())
