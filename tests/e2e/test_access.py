#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who may do what, and bad input: every error names the object, the reason and the next step."""

import socket

from common import (CliError, check, check_equal, command_of, counter_argv, main, refused, submit,
                    wait_for)

NO_JOB, NOT_PERMITTED = 4, 5


def code_of(call):
    try:
        call()
    except CliError as error:
        return error.code
    return 0


def test_own_jobs_only(lab):
    """Users see and steer their own jobs, root all."""
    job = submit(lab, lab[1], "private", counter_argv("mark-1", 2000, 0.05), user="alice")
    for host in (lab[1], lab[2]):
        check_equal([row["name"] for row in host.decamp("ps", user="bob")["jobs"]], [],
                    f"bob does not see alice's job on {host.name}")
        for verb in ("show", "history", "ckpt", "migrate", "freeze", "kill", "ls", "logs"):
            code = code_of(lambda v=verb, h=host: h.decamp(v, "private", user="bob"))
            check(code in (NO_JOB, NOT_PERMITTED), f"bob's {verb} on {host.name} is refused")
        full = lab[1].decamp("show", "private", user="alice")["job"]
        check(code_of(lambda h=host, f=full: h.decamp("kill", f, user="bob")) in
              (NO_JOB, NOT_PERMITTED), "even by the full id")
    check(job.state() in ("running", "checkpointing"), "alice's job runs on")
    check_equal(lab[2].decamp("show", "private")["user"], "alice", "root sees it")
    lab[3].decamp("kill", "private")
    wait_for(lambda: not lab.where("mark-1"), 10, "its end")
    check(True, "root may end it, from another host")


def test_unknown_job(lab):
    """An unknown job is named in the error, with a next step."""
    text = refused(lambda: lab[1].decamp("show", "nosuch", user="alice"), "nosuch")
    check("\n" in text, f"it says what to do next: {text.splitlines()[-1].strip()}")
    check_equal(code_of(lambda: lab[1].decamp("show", "nosuch", user="alice")), NO_JOB,
                "with the exit code of its kind")
    for bad in ("../etc", "a" * 300, "%00", "*"):
        check(code_of(lambda b=bad: lab[1].decamp("show", b)) != 0, f"{bad[:10]!r} is refused")


def test_bad_pids(lab):
    """A dead PID, decampd's own, another user's: refused before anything is frozen."""
    host = lab[1]
    daemon = host.inner_pid(host.daemon.pid)
    before = command_of(host.daemon.pid)
    refused(lambda: host.decamp("check", "999999"), "999999")
    refused(lambda: host.decamp("adopt", "999999"), "999999")
    refused(lambda: host.decamp("adopt", daemon), str(daemon), "decampd")
    refused(lambda: host.decamp("adopt", "1"))
    check_equal(command_of(host.daemon.pid), before, "decampd lives")
    sleeper = host.spawn(["sleep", "4711"], user="alice")
    pid = host.inner_pid(sleeper.pid)
    check(code_of(lambda: host.decamp("adopt", pid, user="bob")) != 0,
          "bob cannot adopt alice's process")
    report = host.decamp("check", pid, user="alice")
    check(report["ok"] and report["engine"] in ("native", "criu"), "her own passes the check")
    sleeper.kill()


def problems(host, pid):
    try:
        report = host.decamp("check", pid)
    except CliError as error:
        return error.text
    return "" if report["ok"] else str(report["problems"])


def test_unsupported(lab):
    """A controlling terminal, a connection: told which, before freezing."""
    host = lab[1]
    host.spawn(["script", "-qc", "sleep 4712", "/dev/null"])
    pid = wait_for(lambda: [p for p in host.pids("sleep 4712")
                            if command_of(p).startswith("sleep")], 5, "the sleeper")[0]
    inner = host.inner_pid(pid)
    check("terminal" in problems(host, inner).lower() or "tty" in problems(host, inner).lower(),
          "a controlling terminal is named")
    refused(lambda: host.decamp("adopt", inner))
    check(command_of(pid).startswith("sleep 4712"), "the process was left alone")
    code = ("import socket, time\n"
            "s = socket.create_connection(('10.77.0.2', 7431))\n"
            "time.sleep(600)\n")
    talker = host.spawn(["python3", "-I", "-c", code])
    wait_for(lambda: "TCP" in problems(host, host.inner_pid(talker.pid)).upper()
             or "CONNECT" in problems(host, host.inner_pid(talker.pid)).upper(), 5,
             "that a TCP connection is named")
    check(True, "a TCP connection is named")
    talker.kill()


def test_not_root(lab):
    """What only root may do is refused to others."""
    for verb in ("vacate", "cluster init", "cluster invite"):
        check_equal(code_of(lambda v=verb: lab[1].decamp(v, user="alice")), NOT_PERMITTED,
                    f"{verb} is root's")


def test_tokens(lab):
    """A used token, a wrong one, a changed one and no token admit nobody."""
    outsider = lab[5]
    outsider.power_cut()
    outsider.boot(wipe=True)
    outsider.start_daemon()
    outsider.wait_daemon()
    token = lab[1].decamp("cluster invite")["token"]
    flipped = token[:-1] + ("a" if token[-1] != "a" else "b")
    middle = token[:20] + ("a" if token[20] != "a" else "b") + token[21:]
    for bad in ("nonsense", "decamp1-", flipped, middle):
        check(code_of(lambda b=bad: outsider.decamp("cluster join", b, "--addr", outsider.addr)),
              f"{bad[:14]}... is refused")
    check(code_of(lambda: outsider.decamp("run", "--", "true")) != 0,
          "outside of a cluster nothing runs")
    lab.wait_members(lab.hosts[:4])
    token = lab[1].decamp("cluster invite")["token"]
    outsider.decamp("cluster join", token, "--addr", outsider.addr)
    check(code_of(lambda: outsider.decamp("cluster join", token, "--addr", outsider.addr)) != 0,
          "a host that is in a cluster cannot join again")
    outsider.power_cut()
    outsider.boot(wipe=True)
    outsider.start_daemon()
    outsider.wait_daemon()
    check(code_of(lambda: outsider.decamp("cluster join", token, "--addr", outsider.addr)) != 0,
          "a used token admits nobody else")


def test_wrong_cluster(lab):
    """A host of another cluster is not answered."""
    stranger = lab[5]
    stranger.decamp("cluster init", "--addr", stranger.addr)
    config = stranger.read("/var/lib/decamp/cluster.conf") if stranger.path(
        "/var/lib/decamp/cluster.conf").exists() else b""
    check(b"10.77.0.1" not in config, "it knows nothing of the other cluster")
    # What it was in this cluster, before its disk was wiped, may not be known to be dead yet.
    lab.wait_members(lab.hosts[:4])
    check_equal(lab.alive_seen_by(lab[1]), {f"host{i}" for i in range(1, 5)},
                "it is not among the members")
    check_equal(lab.alive_seen_by(stranger), {"host5"}, "it sees nobody but itself")


GARBAGE = """
import os, socket, ssl, sys
kind = sys.argv[1]
s = socket.create_connection(("10.77.0.1", 7431), 5)
s.settimeout(8)
try:
    if kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        s = context.wrap_socket(s)
    for i in range(64):
        s.sendall(os.urandom(4096) if kind != "zero" else bytes(4096))
    answer = s.recv(4096)
    # A TLS alert is all that may come.
    print("closed" if not answer or answer[0] == 21 else "answered")
except OSError:
    print("closed")
"""


def test_garbage(lab):
    """Garbage, zeros and TLS without a certificate are hung up on; the host serves on."""
    for kind in ("random", "zero", "tls"):
        for _ in range(3):
            said = lab[2].run(["python3", "-I", "-c", GARBAGE, kind]).stdout.strip()
            check_equal(said, "closed", f"{kind}: hung up on")
    lab.wait_members(lab.hosts[:4])
    check(lab[1].daemon.running(), "the host serves on")


def test_control_socket(lab):
    """Garbage on the control socket is answered with an error."""
    for text in (b"\0" * 5000, b"POST /v1/ps HTTP/1.1\r\nContent-Length: 5\r\n\r\n{{{{{",
                 b"POST /v1/nosuch HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
                 b"POST /v1/run HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\n{}"):
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(5)
            client.connect(str(lab[1].path("/run/decamp/control.sock")))
            client.sendall(text)
            try:
                answer = client.recv(100)
            except TimeoutError:
                answer = b""
            check(not answer.startswith(b"HTTP/1.1 200"), "no success is answered")
    check(lab[1].decamp("nodes")["nodes"], "the host serves on")


if __name__ == "__main__":
    main(globals(), needs=("script",))
