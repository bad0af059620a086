#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A job's needs decide where it goes on, and decamp says why it is not elsewhere."""

import os
from pathlib import Path

from common import (Failed, Job, LabError, check, check_counter, check_equal, counter_argv, main,
                    make_folder, refused, submit, wait_for)

STEPS = 200
TAGS = {"host2": "gpu, slow", "host4": "gpu big"}
JOB_FILE = """\
# where it may go on
needs = gpu && !slow && mem >= 1M && arch != s390x
every = 2
"""


def reasons(job, at):
    """For each host, what stands between it and the job."""
    answer = job.ask("why", job.name, at=at)
    return answer, {host["host"]: "fits" if host["fits"] else "; ".join(host["reasons"])
                    for host in answer["hosts"]}


def wait_why(job, at, wanted):
    """Until these hosts are judged so: what one host knows of another may come a moment late."""
    def judged():
        answer, why = reasons(job, at)
        return (answer, why) if all(why[name] == text for name, text in wanted.items()) else None
    try:
        return wait_for(judged, 30, f"that {wanted} is said")
    except LabError as error:
        raise Failed(f"{error}; now: {reasons(job, at)}") from error


def test_tags_are_known(lab):
    """What an administrator calls his hosts is known to all of them."""
    for host in lab.hosts:
        host.settings["tags"] = TAGS.get(host.name, "")
    lab.start_daemons()
    lab.make_cluster()
    lab.user = lab.job_user()
    # That a host is alive may be known before its first report is.
    wait_for(lambda: [nodes_of(lab)[f"host{i}"]["tags"] for i in range(1, 5)]
             == ["", "gpu slow", "", "gpu big"], 30, "the tags of all hosts")
    check(True, "decamp nodes tells them")
    node = nodes_of(lab)["host2"]
    check(node["cores"] > 0 and "." in node["kernel"] and node["arch"] != "?",
          "and what the machine is")


def nodes_of(lab):
    return {node["name"]: node for node in lab[1].decamp("nodes")["nodes"]}


def test_wrong_needs(lab):
    """What cannot be understood is refused with the place and what could stand there."""
    text = refused(lambda: submit(lab, lab[1], "bad", ["/bin/true"], "--needs", "gpu && mem => 8G"))
    check("character 12" in text and "a relation is expected" in text, text.splitlines()[0])
    lab[1].write("/root/job", "every = 5\n\nneed = gpu\n")
    text = refused(lambda: lab[1].decamp("run", "--file", "/root/job", "--", "/bin/true"))
    check('/root/job:3: "need" is no option of a job' in text, text.splitlines()[0])


def test_needs_choose_the_host(lab):
    """The one host that fits takes the job over; of the others decamp tells what they lack."""
    home = lab[1]
    folder = make_folder(home, "picky", lab.user)
    home.write(folder + "/job", JOB_FILE)
    job = submit(lab, home, "picky", counter_argv("mark-1", STEPS, 0.08), "--file", "job",
                 cwd=folder)
    job.wait_seq(2)
    answer, why = wait_why(job, lab[2], {"host2": "has the tag slow", "host3": "no tag gpu",
                                         "host4": "fits"})
    check_equal(answer["needs"], "gpu && !slow && mem >= 1M && arch != s390x",
                "the needs are those of the job file")
    for name in ("host2", "host3", "host4"):
        check(True, f"{name}: {why[name]}")
    check_equal(answer["waits_for"], "nothing: host1 has it", answer["waits_for"])
    refused(lambda: job.ask_once("migrate", job.name, "host3"), "no tag gpu")
    home.power_cut()
    job.wait_host([lab[4]], at=lab[2])
    check(lab[4].pids("mark-1"), "it goes on where the tag is")


def test_nobody_fits(lab):
    """Its only host is emptied: it waits, and both show and why say for what."""
    job = the_same(lab)
    lab[4].decamp("vacate")
    job.wait_state("waiting", at=lab[2])
    wait_for(lambda: "is being vacated" in reasons(job, lab[2])[1]["host4"], 30, "why not host4")
    answer, why = reasons(job, lab[2])
    check(True, "host4: " + why["host4"])
    check("does not answer" in why["host1"] and "no tag gpu" in why["host1"],
          "host1: " + why["host1"])
    check_equal(answer["waits_for"], "a host that fits", "it waits for a host that fits")
    check_equal(answer["fitting"], 0, "none does")
    wait_for(lambda: len(job.show(at=lab[3])["detail"].get("refusals", [])) == 4, 30,
             "four refusals in decamp show")
    check(True, "decamp show tells the same")
    text = lab[2].run([lab.build / "decamp", "why", job.name], user=lab.user).stdout
    check(f"{job.name} waits for a host that fits\n" in text and "host host3: no tag gpu\n" in text,
          "one line for each host")
    shown = lab[3].run([lab.build / "decamp", "show", job.name], user=lab.user).stdout
    check("waits for:" in shown and "host3: no tag gpu" in shown, "and in decamp show")
    lab[4].decamp("vacate", "--undo")
    job.wait_host([lab[4]], at=lab[2])
    check(True, "it goes on when its host is back")
    lab[1].boot()
    lab[1].start_daemon()
    lab[1].wait_daemon()
    lab.wait_members()
    job.wait_collected()
    check_counter(job, STEPS)


def test_no_engine(lab):
    """What nobody can checkpoint is named before anything is stopped; the job goes on."""
    code = ("import ctypes, time\n"
            "fd = ctypes.CDLL(None).syscall(323, 1)\n"
            "for i in range(6000): print(fd, i, flush=True) or time.sleep(0.1)\n")
    job = submit(lab, lab[1], "faults", ["python3", "-I", "-c", code], "--every", "1000")
    wait_for(lambda: any(has_userfaultfd(pid) for pid in lab[1].pids("syscall(323")), 10,
             "its userfaultfd")
    text = wait_for(lambda: said(lambda: job.ask_once("ckpt", job.name), "userfaultfd"), 20,
                    "that its userfaultfd is named")
    check("CRIU" not in text, text.splitlines()[0])
    refused(lambda: job.ask_once("migrate", job.name, "host2"), "userfaultfd")
    check(lab[1].pids("syscall(323"), "it runs on")
    job.ask("kill", job.name)


def has_userfaultfd(pid):
    try:
        return any("userfaultfd" in os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False  # a file that it had open a moment ago


def said(call, word):
    text = refused(call)
    return text if word in text else ""


def the_same(lab):
    """The job of the test before, as another host knows it."""
    job = Job(lab, lab[1], "picky", lab.user)
    job.marker = "mark-1"
    job.tell_from = 0
    wait_for(lambda: job.show(at=lab[2])["host"] == "host4", 10, "that host4 has it")
    return job


if __name__ == "__main__":
    main(globals(), hosts=4, cluster=False)
