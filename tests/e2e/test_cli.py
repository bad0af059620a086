#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""decamp(1) against a server that gives prepared answers: requests, output, exit codes."""

import fcntl
import http.server
import json
import os
import pty
import re
import select
import signal
import socketserver
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import unittest
from pathlib import Path

from cli_samples import CKPT, DETAIL, JOB, MOVE, NODE, NOW, SUMMARY

ROOT = Path(__file__).resolve().parent.parent.parent
DECAMP = os.environ.get("DECAMP_TEST_PROGRAM", str(ROOT / "build/decamp"))


def ended(state="done", status=0, **more):
    return dict(SUMMARY, state=state, exit_status=status, exit_code=status >> 8, detail=DETAIL,
                **more)


class Raw:
    """An answer of bytes, as logs and cat give it."""

    def __init__(self, body, state="running", after=0):
        self.body, self.state, self.after = body, state, after


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = json.loads(body.decode(errors="surrogateescape"))
        verb = self.path.removeprefix("/v1/")
        self.server.requests.append((verb, body))
        answer = self.server.answers[verb]
        if isinstance(answer, list):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if callable(answer):
            answer = answer(body)
        if answer is None:
            self.close_connection = True
            return
        status = 200
        if isinstance(answer, tuple):
            status, answer = answer
        try:
            self.send(status, answer, body)
        except BrokenPipeError:
            pass

    def send(self, status, answer, body):
        self.send_response(status)
        if isinstance(answer, Raw):
            payload = answer.body[body.get("offset", 0) - answer.after:]
            self.send_header("X-Decamp-Next", str(body.get("offset", 0) + len(payload)))
            self.send_header("X-Decamp-State", answer.state)
        elif isinstance(answer, bytes):
            payload = answer
        else:
            payload = json.dumps(answer).encode()
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 16


def error(status, code, obj="sim1", reason="it did not work", following="Try that."):
    return status, {"error": {"object": obj, "reason": reason, "next": following, "code": code}}


class Case(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="decamp-test-cli-")
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "sock")
        self.server = Server(self.path, Handler)
        self.server.requests = []
        self.server.answers = {}
        thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        self.addCleanup(self.server.server_close)
        self.addCleanup(self.server.shutdown)

    def env(self):
        env = {k: v for k, v in os.environ.items() if not k.startswith("DECAMP_")}
        env.update(DECAMP_SOCKET=self.path, LC_ALL="C.UTF-8", TERM="xterm")
        env.pop("NO_COLOR", None)
        return env

    def start(self, *args, **more):
        more.setdefault("stdin", subprocess.DEVNULL)
        more.setdefault("env", self.env())
        return subprocess.Popen([DECAMP, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                **more)

    def decamp(self, *args, code=0, raw=False, input=None, **more):
        """Run decamp, check its exit code, return stdout and stderr."""
        if input is not None:
            more["stdin"] = subprocess.PIPE
        process = self.start(*args, **more)
        out, err = process.communicate(input, timeout=120)
        self.assertEqual(process.returncode, code, (args, out, err))
        err = err.decode()
        self.assertNotIn("\033", err)
        return (out if raw else out.decode()), err

    def answer(self, verb, *answers):
        self.server.answers[verb] = list(answers)

    def asked(self, verb, index=-1):
        found = [body for name, body in self.server.requests if name == verb]
        self.assertTrue(found, f"no request {verb}: {self.server.requests}")
        return found[index]

    def passthrough(self, answer, *args, code=0):
        out, err = self.decamp(*args, "--json", code=code)
        self.assertEqual(json.loads(out), answer)
        self.assertEqual(out.count("\n"), 1)
        return err


class TestRun(Case):
    def setUp(self):
        super().setUp()
        self.reply = {"job": JOB, "name": "sim1", "stdout": "/o", "stderr": "/e"}
        self.answer("run", self.reply)

    def test_defaults(self):
        env = dict(self.env(), KEEP="1", DECAMP_SECRET="2")
        old = os.umask(0o027)
        try:
            out, err = self.decamp("run", "./sim", "-x", "--json", cwd="/usr", env=env)
        finally:
            os.umask(old)
        body = self.asked("run")
        self.assertEqual((out, err), ("sim1\n", ""))
        self.assertEqual(body["argv"], ["./sim", "-x", "--json"])
        self.assertEqual(body["cwd"], "/usr")
        self.assertEqual(body["umask"], 0o027)
        self.assertIs(body["carry_cwd"], True)
        self.assertIn("KEEP=1", body["env"])
        self.assertFalse([e for e in body["env"] if e.startswith("DECAMP_")])
        for key in ("name", "every_s", "fence", "stdin"):
            self.assertNotIn(key, body)

    def test_options(self):
        env = dict(self.env(), A="inherited")
        self.decamp("run", "-n", "n1", "--every", "30", "--cwd", "lib", "--env", "A=1", "--env",
                    "B=", "--env=A=2", "--fence", "commit", "--input", "in.csv", "--input", "/x",
                    "--no-cwd", "--stdin", "i", "--", "-prog", "--", "a", cwd="/usr", env=env)
        body = self.asked("run")
        self.assertEqual(body["argv"], ["-prog", "--", "a"])
        self.assertEqual(body["name"], "n1")
        self.assertEqual(body["every_s"], 30)
        self.assertEqual(body["cwd"], "/usr/lib")
        self.assertEqual(body["fence"], "commit")
        self.assertEqual(body["inputs"], ["/usr/in.csv", "/x"])
        self.assertEqual(body["stdin"], "/usr/i")
        self.assertIs(body["carry_cwd"], False)
        self.assertEqual([e for e in body["env"] if e.startswith(("A=", "B="))], ["B=", "A=2"])

    def test_job_file(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("# a job\n\n name = n2 \nneeds=gpu && mem >= 8G\nevery = 7\nenv = A=1\n"
                       "input = in.csv\nno-cwd = yes\nwait = no\n")
            file.flush()
            self.decamp("run", "--file", file.name, "--every", "9", "--env", "B=2", "--", "a",
                        cwd="/usr")
            body = self.asked("run")
            self.assertEqual((body["name"], body["needs"], body["every_s"], body["cwd"]),
                             ("n2", "gpu && mem >= 8G", 9, "/usr"))
            self.assertEqual(body["inputs"], ["/usr/in.csv"])
            self.assertIs(body["carry_cwd"], False)
            self.assertLessEqual({"A=1", "B=2"}, set(body["env"]))
            for line, error in (("needs", "is not \"name = value\""), ("nam = x", "no option"),
                                ("file = x", "no option"), ("wait = 1", "neither yes nor no"),
                                ("json = yes", "no option"), ("name = a\0b", "NUL")):
                file.write(line + "\n")
                file.flush()
                _, err = self.decamp("run", "--file", file.name, "a", code=2)
                self.assertIn(error, err)
                if "NUL" not in error:
                    self.assertIn(f"{file.name}:10: ", err)
                os.truncate(file.name, os.path.getsize(file.name) - len(line) - 1)
                file.seek(0, os.SEEK_END)
        _, err = self.decamp("run", "--file", "/nonexistent", "a", code=2)
        self.assertIn("No such file", err)

    def test_note(self):
        self.answer("run", dict(self.reply, note="no tag gpu here"))
        out, err = self.decamp("run", "--needs", "gpu", "a")
        self.assertEqual((out, err), ("sim1\n", "decamp: sim1: no tag gpu here\n"))
        self.assertEqual(self.asked("run")["needs"], "gpu")

    def test_json(self):
        self.passthrough_before("run", "true")

    def passthrough_before(self, *args):
        out, _ = self.decamp("--json", *args)
        self.assertEqual(json.loads(out), self.reply)

    def test_bytes_that_are_not_utf8(self):
        self.decamp(b"run", b"x\xff")
        self.assertEqual(os.fsencode(self.asked("run")["argv"][0]), b"x\xff")

    def test_wait(self):
        self.answer("show", dict(SUMMARY, state="starting"), SUMMARY, ended(status=7 << 8))
        out, _ = self.decamp("run", "--wait", "--", "false", code=7)
        self.assertEqual(out, "sim1\n")
        self.assertEqual(self.asked("show"), {"job": JOB})

    def test_usage(self):
        for args in ((), ("--every", "x", "a"), ("--every", "0", "a"), ("--fence", "no", "a"),
                     ("--env", "NOVALUE", "a"), ("--bad", "a"), ("--name",)):
            out, err = self.decamp("run", *args, code=2)
            self.assertRegex(err, r"^decamp: run: .+\n  Try \"decamp run --help\"\.\n$")
            self.assertEqual(out, "")
        self.assertEqual(self.server.requests, [])

    def test_environment_too_large(self):
        env = dict(self.env(), **{f"V{i}": "x" * 100000 for i in range(4)})
        _, err = self.decamp("run", "true", code=1, env=env)
        self.assertIn("bytes", err)

    def test_adopt(self):
        self.answer("adopt", {"job": JOB, "name": "sim1"})
        out, _ = self.decamp("adopt", "4711", "--name", "x", "--every", "9", "--fence", "strict")
        self.assertEqual(out, "sim1\n")
        self.assertEqual(self.asked("adopt"),
                         {"pid": 4711, "name": "x", "every_s": 9, "fence": "strict"})
        self.passthrough({"job": JOB, "name": "sim1"}, "adopt", "4711")
        for bad in ("0", "-1", "abc", "99999999999"):
            self.decamp("adopt", "--", bad, code=2)


class TestTables(Case):
    def test_ps(self):
        jobs = {"jobs": [
            SUMMARY, dict(SUMMARY, name="new", state="starting", seq=0, protected=False),
            ended(name="bad\033[31m", status=3 << 8), ended(state="killed", status=9, name="k"),
            dict(SUMMARY, name="c", state="checkpointing", step="copy", step_done=1,
                 step_total=4)]}
        self.answer("ps", jobs)
        out, err = self.decamp("ps")
        lines = out.splitlines()
        self.assertEqual(self.asked("ps"), {"all": False})
        self.assertEqual(lines[0].split(),
                         ["NAME", "JOB", "USER", "STATE", "HOST", "CKPT", "COMMAND"])
        self.assertRegex(lines[1], r"^sim1 +01234567  ada +running +lab-07  #17, 42 s +\./sim --gr")
        self.assertTrue(lines[1].endswith("x" * 100))
        self.assertRegex(lines[2], r"^new .* starting .* none ")
        self.assertIn("bad?[31m", lines[3])
        self.assertIn("done (exit code 3)", lines[3])
        self.assertIn("killed", lines[4])
        self.assertIn("checkpointing 25 %", lines[5])
        self.assertEqual(err, "")
        self.assertEqual(len({line.index("./sim") for line in lines[1:]}), 1)
        self.decamp("ps", "-a")
        self.assertEqual(self.asked("ps"), {"all": True})
        self.passthrough(jobs, "ps")

    def test_ps_without_jobs(self):
        self.answer("ps", {"jobs": []})
        out, err = self.decamp("ps")
        self.assertEqual((out.count("\n"), err), (1, ""))

    def test_show(self):
        self.answer("show", dict(SUMMARY, detail=DETAIL))
        out, _ = self.decamp("show", "sim1")
        self.assertEqual(self.asked("show"), {"job": "sim1"})
        for pattern in (
                r"^name: +sim1$", r"^state: +running$", r"^runs on: +lab-07$",
                r"^protected until: +[-0-9: ]+ \(checkpoint 17, 42 s ago\)$",
                r"^if the host died now: +the last 42 s of work", r"^interval: +60 s \(found",
                r"^pause: +3\.2 ms usually, 8\.1 ms at most$", r"^sent per checkpoint: +1\.2 MiB$",
                r"^copies are on: +lab-02, lab-03$", r"^moves: +2$", r"^memory: +210 MiB$",
                r"^captured by: +native 15 times, criu 2 times$",
                r"^not by native, because: +process 4711 shares its memory",
                r"^last pause: +700 us: freeze 100 us, state 80 us, files 90 us",
                r"^stopped by: +ptrace, not by the module: signals wait for process 4711$",
                r"^memory followed by: +userfaultfd, 2 rounds, 1\.0 MiB left for the pause$",
                r"^note: +it writes memory faster than that can be copied \(900000 pages",
                r"^result files: +3 written, 1 set aside", r"^back at work within: +3\.1 s"):
            self.assertRegex(out, re.compile(pattern, re.M))
        starts = {len(m.group(0)) for m in re.finditer(r"^[^\n:]+: +", out, re.M)}
        self.assertEqual(len(starts), 1, out)
        self.passthrough(dict(SUMMARY, detail=DETAIL), "show", "sim1")

    def test_show_without_checkpoint(self):
        self.answer("show", dict(SUMMARY, seq=0, protected=False, message="io_uring in use",
                                 detail={}))
        out, _ = self.decamp("show", "sim1")
        self.assertIn("not yet: no checkpoint", out)
        self.assertIn("all work since the start would be lost", out)
        self.assertRegex(out, r"last message: +io_uring in use")

    def test_show_of_an_ended_job(self):
        self.answer("show", ended(status=11))
        out, _ = self.decamp("show", "sim1")
        self.assertRegex(out, r"state: +done: killed by SIGSEGV")
        self.assertNotIn("died now", out)

    def test_recover(self):
        answer = {"register": "no-majority", "refused": 1, "checkpoints": [
            {"seq": 17, "token": 12, "wall_ms": NOW, "manifest": "ab" * 32, "holders": 3,
             "committed": False}]}
        self.answer("recover", answer)
        out, _ = self.decamp("recover", "sim1")
        self.assertEqual(self.asked("recover"), {"job": "sim1"})
        self.assertRegex(out.splitlines()[1], r" 17 +12 +3  not known +(ab){8}$")
        self.assertIn("when they return", out)
        self.passthrough(answer, "recover", "sim1")

    def test_history(self):
        before = dict(CKPT, seq=16, wall_ms=NOW - 100000, engine="native", restorable=False)
        answer = {"checkpoints": [CKPT, dict(before, pause_mostly="disk")], "moves": [MOVE]}
        self.answer("history", answer)
        out, _ = self.decamp("history", "sim1")
        lines = out.splitlines()
        self.assertEqual(self.asked("history"), {"job": "sim1"})
        self.assertEqual(len(lines), 4)
        self.assertRegex(lines[1], r" 16  lab-07  interval +native +3\.2 ms  disk .* no$")
        self.assertRegex(lines[2], r"moved lab-01 -> lab-07: user logged in; from checkpoint 16")
        self.assertRegex(lines[3], r" 17  lab-07  interval +criu +3\.2 ms +1\.4 s +210 MiB +4\.0 KiB "
                                   r"+2\.0 MiB +1\.5 MiB +1\.0 MiB  yes$")
        self.passthrough(answer, "history", "sim1")

    def test_nodes(self):
        answer = {"nodes": [NODE, dict(NODE, name="lab-08", self=False, state="suspect")]}
        self.answer("nodes", answer)
        out, _ = self.decamp("nodes")
        lines = out.splitlines()
        self.assertEqual(self.asked("nodes"), {})
        self.assertRegex(lines[1], r"^lab-07 \(this one\)  r1 +alive +now +0\.25 +8\.0 GiB +123 MiB"
                                   r" +9\.0 GiB +2  10\.0\.0\.7:7431  takes-jobs$")
        self.assertRegex(lines[2], r"^lab-08 .* suspect +0 s ago ")
        self.passthrough(answer, "nodes")

    def test_credit_of_nodes(self):
        def sums(gib, restores):
            return {"byte_hours": gib << 30, "restores": restores, "restored_bytes": restores << 20}
        first = {"answered": True, "given": sums(3, 2), "taken": sums(1, 0), "receipts": 2,
                 "unverified": sums(5, 0), "unverified_receipts": 1, "forged_receipts": 0}
        answer = {"nodes": [dict(NODE, credit=first),
                            dict(NODE, name="lab-08", self=False, state="dead",
                                 credit=dict(first, answered=False, given=sums(0, 0))),
                            dict(NODE, name="lab-09", credit=dict(first, given=sums(0, 0))),
                            dict(NODE, name="lab-10", credit=dict(first, forged_receipts=7)),
                            dict(NODE, name="lab-11")],
                  "refused_receipts": {"forged": 0, "foreign": 0, "older": 0}}
        self.answer("nodes", answer)
        lines = self.decamp("nodes", "--credit")[0].splitlines()
        self.assertEqual(self.asked("nodes"), {"credit": True})
        self.assertRegex(lines[1], r"^lab-07 \(this one\)  alive +3\.0 GiB h +2 \(2\.0 MiB\) +1\.0 GiB h"
                                   r" +0 \(0 B\) +\+2\.0 GiB h  and 5\.0 GiB h that cannot be verified$")
        self.assertRegex(lines[2], r"^lab-08 +dead +\? +\? +1\.0 GiB h +0 \(0 B\) +\?  does not show")
        for line, end in ((3, r" -1\.0 GiB h  and.*"), (4, "shows 7 forged"), (5, r"( +\?){5}  does.*")):
            self.assertRegex(lines[line], end + "$")
        self.passthrough(answer, "nodes", "--credit")

    def test_tags_of_nodes(self):
        self.answer("nodes", {"nodes": [NODE, dict(NODE, name="lab-08", tags="gpu big")]})
        lines = self.decamp("nodes")[0].splitlines()
        self.assertRegex(lines[0], r"FLAGS +TAGS$")
        self.assertRegex(lines[2], r"takes-jobs +gpu big$")

    def test_why(self):
        answer = dict(SUMMARY, waits_for="a host\x1b[2J that fits", needs="gpu && !slow", fitting=1,
                      hosts=[{"host": "lab-01", "fits": False, "owner": False,
                              "reasons": ["is being vacated", "no tag gpu"]},
                             {"host": "lab-02", "fits": False, "owner": True,
                              "reasons": ["no tag gpu"]},
                             {"host": "lab-03", "fits": True, "owner": False, "reasons": []},
                             {"host": "lab-04", "fits": True, "owner": True, "reasons": []}, None])
        self.answer("why", answer)
        out, _ = self.decamp("why", "sim1")
        self.assertEqual(out, "sim1 waits for a host?[2J that fits\n"
                              "It needs gpu && !slow\n"
                              "host lab-01: is being vacated; no tag gpu\n"
                              "host lab-02: has the job; no tag gpu\n"
                              "host lab-03: fits\n"
                              "host lab-04: has the job\n"
                              "host ?: \n")
        self.assertEqual(self.asked("why"), {"job": "sim1"})
        self.passthrough(answer, "why", "sim1")

    def test_doctor(self):
        answer = {"features": [{"name": "criu", "have": True, "use": "criu 4.2", "why": "restores"},
                               {"name": "bpf", "have": False, "use": "procfs", "why": "follows"}],
                  "warnings": ["/run is no tmpfs"], "ok": True, "cluster": "c1"}
        self.answer("doctor", answer)
        out, _ = self.decamp("doctor")
        self.assertRegex(out, r"criu +yes +criu 4\.2 +restores\nbpf +no +procfs +follows\n")
        self.assertIn("- /run is no tmpfs\n", out)
        self.assertIn("cluster: c1\n", out)
        self.passthrough(answer, "doctor")
        self.answer("doctor", dict(answer, ok=False, cluster={"name": "c1", "nodes": 5}))
        out, _ = self.decamp("doctor", code=1)
        self.assertIn("cluster nodes: 5\n", out)
        self.passthrough(dict(answer, ok=False, cluster={"name": "c1", "nodes": 5}), "doctor",
                         code=1)

    def test_check(self):
        answer = {"pid": 4711, "name": "sim", "engine": "criu",
                  "native_reason": "4711 uses io_uring", "ok": True, "problems": [],
                  "notes": ["12 threads"]}
        self.answer("check", answer)
        out, _ = self.decamp("check", "4711")
        self.assertEqual(self.asked("check"), {"pid": 4711})
        self.assertIn("4711 (sim): can be checkpointed\nengine: criu\n"
                      "not native: 4711 uses io_uring\n", out)
        self.assertIn("- 12 threads", out)
        self.passthrough(answer, "check", "4711")
        self.answer("check", dict(answer, ok=False, problems=[
            {"object": "fd 7", "reason": "a GPU", "next": "Close it."}]))
        out, _ = self.decamp("check", "4711", code=1)
        self.assertIn("- fd 7: a GPU\n  Close it.\n", out)

    def test_ls(self):
        answer = {"seq": 17, "files": [
            {"path": "/home/ada/out.csv", "size": 2048, "mode": 0o100644, "mtime_ms": NOW,
             "kind": "file"}]}
        self.answer("ls", answer)
        out, _ = self.decamp("ls", "sim1")
        self.assertRegex(out, r"-rw-r--r--  2\.0 KiB  [-0-9: ]+  file  /home/ada/out\.csv\n$")
        self.assertEqual(self.asked("ls"), {"job": "sim1"})
        self.passthrough(answer, "ls", "sim1")


class TestStreams(Case):
    def test_cat(self):
        payload = bytes(range(256)) * 1000
        self.answer("cat", Raw(payload))
        out, _ = self.decamp("cat", "sim1:/a:b", raw=True)
        self.assertEqual(out, payload)
        self.assertEqual(self.asked("cat"), {"job": "sim1", "path": "/a:b"})
        self.answer("cat", error(404, "no-such-file", "/a"))
        out, err = self.decamp("cat", "sim1:/a", code=1)
        self.assertEqual((out, err), ("", "decamp: /a: it did not work\n  Try that.\n"))
        for bad in ("sim1", ":x", "sim1:"):
            self.decamp("cat", bad, code=2)

    def test_logs(self):
        self.answer("logs", Raw(b"one\ntwo\xff\n"))
        out, _ = self.decamp("logs", "sim1", raw=True)
        self.assertEqual(out, b"one\ntwo\xff\n")
        self.assertEqual(self.asked("logs"), {"job": "sim1", "stream": "stdout", "offset": 0})
        self.decamp("logs", "--stderr", "sim1", raw=True)
        self.assertEqual(self.asked("logs")["stream"], "stderr")

    def test_logs_in_parts(self):
        self.answer("logs", Raw(b"a" * 100000), Raw(b"b" * 10, after=100000))
        out, _ = self.decamp("logs", "sim1")
        self.assertEqual(out, "a" * 100000 + "b" * 10)

    def test_logs_follow(self):
        self.answer("logs", Raw(b"one\n"), Raw(b"one\n"), None, error(503, "try-again"),
                    Raw(b"one\ntwo\n"), Raw(b"one\ntwo\n", state="done"))
        out, err = self.decamp("logs", "-f", "sim1")
        self.assertEqual((out, err), ("one\ntwo\n", ""))
        self.assertEqual(self.asked("logs")["offset"], 8)

    def test_logs_follow_of_no_job(self):
        self.answer("logs", error(404, "no-such-job"))
        self.decamp("logs", "-f", "sim1", code=4)


class TestSteering(Case):
    def test_states(self):
        for verb, state in (("freeze", "frozen"), ("thaw", "running"), ("kill", "killed")):
            self.answer(verb, {"state": state})
            out, _ = self.decamp(verb, "sim1")
            self.assertEqual(out, f"sim1: {state}\n")
            self.assertEqual(self.asked(verb), {"job": "sim1"})
            self.passthrough({"state": state}, verb, "sim1")

    def test_kill_signals(self):
        self.answer("kill", {"state": "running"})
        for name, number in (("USR1", 10), ("SIGTERM", 15), ("9", 9), ("int", 2), ("34", 34)):
            self.decamp("kill", "-s", name, "sim1")
            self.assertEqual(self.asked("kill"), {"job": "sim1", "signal": number})
        for bad in ("XYZ", "0", "99", "9x", "-1"):
            self.decamp("kill", "-s", bad, "sim1", code=2)

    def test_wait(self):
        for answer, code in ((ended(status=0), 0), (ended(status=5 << 8), 5),
                             (ended(status=11), 139), (ended(state="killed", status=15), 143),
                             (dict(SUMMARY, state="killed"), 137),
                             (dict(SUMMARY, state="collected", exit_code=3), 3)):
            self.answer("show", SUMMARY, answer)
            out, err = self.decamp("wait", "sim1", code=code)
            self.assertEqual((out, err), ("", ""))
        self.assertEqual(self.asked("show"), {"job": JOB})
        self.answer("show", ended(status=5 << 8))
        self.passthrough(ended(status=5 << 8), "wait", "sim1", code=5)

    def test_wait_outlasts_a_restart(self):
        self.answer("show", SUMMARY, None, None, SUMMARY, ended())
        _, err = self.decamp("wait", "sim1")
        self.assertEqual(err.count("still waiting"), 1)

    def test_wait_interrupted(self):
        self.answer("show", SUMMARY)
        process = self.start("wait", "sim1")
        while not self.server.requests:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertIn(b"the job runs on", err)

    def test_ckpt(self):
        answer = {"seq": 18, "pause_us": 3200, "sent_bytes": 1 << 20}
        self.answer("ckpt", answer)
        out, err = self.decamp("ckpt", "sim1")
        self.assertEqual(out, "sim1: checkpoint 18 is committed: paused 3.2 ms, 1.0 MiB sent\n")
        self.assertEqual((self.asked("ckpt"), err), ({"job": "sim1"}, ""))
        self.passthrough(answer, "ckpt", "sim1")

    def test_migrate(self):
        self.answer("migrate", {"host": "lab-09"})
        out, _ = self.decamp("migrate", "sim1")
        self.assertEqual(out, "sim1: runs on lab-09\n")
        self.assertEqual(self.asked("migrate"), {"job": "sim1"})
        self.decamp("migrate", "sim1", "lab-09")
        self.assertEqual(self.asked("migrate"), {"job": "sim1", "host": "lab-09"})
        self.passthrough({"host": "lab-09"}, "migrate", "sim1")
        self.decamp("migrate", "a", "b", "c", code=2)

    def test_restore(self):
        self.answer("restore", {"host": "lab-09"})
        for args, body in ((("sim1",), {"job": "sim1"}), (("sim1@17",), {"job": "sim1", "seq": 17}),
                           (("a@b", "--on", "h"), {"job": "a@b", "host": "h"})):
            out, _ = self.decamp("restore", *args)
            self.assertEqual(self.asked("restore"), body)
            self.assertIn("runs on lab-09", out)
        self.decamp("restore", "sim1@0", code=2)
        self.passthrough({"host": "lab-09"}, "restore", "sim1")

    def test_vacate(self):
        self.answer("vacate", {"jobs_left": [], "moved": 2})
        out, _ = self.decamp("vacate")
        self.assertEqual((out, self.asked("vacate")), ("2 moved, 0 left here\n", {"undo": False}))
        self.decamp("vacate", "--undo")
        self.assertEqual(self.asked("vacate"), {"undo": True})
        self.answer("vacate", {"jobs_left": ["a", "b"], "moved": 0})
        _, err = self.decamp("vacate", code=1)
        self.assertRegex(err, r"^decamp: a, b: could not leave this machine\n  ")
        self.passthrough({"jobs_left": ["a", "b"], "moved": 0}, "vacate", code=1)

    def test_interrupted_work_goes_on(self):
        release = threading.Event()
        self.addCleanup(release.set)
        self.answer("ckpt", lambda _: release.wait(120) and {"seq": 1})
        process = self.start("ckpt", "sim1")
        while not self.server.requests:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertIn(b"decamp: sim1: decampd goes on with the work\n", err)


class TestCluster(Case):
    def test_init(self):
        answer = {"cluster": "c1", "node": "n1"}
        self.answer("cluster-init", answer)
        out, _ = self.decamp("cluster", "init", "--room", "r", "--addr", "10.0.0.1", "--port", "7")
        self.assertEqual(out, "cluster: c1\nnode:    n1\n")
        self.assertEqual(self.asked("cluster-init"), {"room": "r", "addr": "10.0.0.1", "port": 7})
        self.passthrough(answer, "cluster", "init")
        self.assertEqual(self.asked("cluster-init"), {})
        self.decamp("cluster", "init", "--port", "70000", code=2)

    def test_invite(self):
        self.answer("cluster-invite", {"token": "decamp1-abc"})
        out, err = self.decamp("cluster", "invite", "--ttl", "60")
        self.assertEqual((out, err), ("decamp1-abc\n", ""))
        self.assertEqual(self.asked("cluster-invite"), {"ttl_s": 60})
        self.passthrough({"token": "decamp1-abc"}, "cluster", "invite")

    def test_join(self):
        answer = {"cluster": "c1", "node": "n1"}
        self.answer("cluster-join", answer)
        self.decamp("cluster", "join", "decamp1-abc", "--room", "r")
        self.assertEqual(self.asked("cluster-join"), {"token": "decamp1-abc", "room": "r"})
        self.decamp("cluster", "join", "-", input=b"decamp1-xyz\n")
        self.assertEqual(self.asked("cluster-join"), {"token": "decamp1-xyz"})
        self.passthrough(answer, "cluster", "join", "t")
        self.decamp("cluster", "join", code=2)
        self.decamp("cluster", "join", "-", input=b"", code=2)

    def test_words(self):
        self.decamp("cluster", code=2)
        self.decamp("cluster", "fly", code=2)
        out, _ = self.decamp("cluster", "--help")
        self.assertIn("cluster invite", out)


class TestErrors(Case):
    def test_shape_and_codes(self):
        cases = ((400, "bad-request", 1), (404, "no-such-job", 4), (404, "no-such-host", 1),
                 (404, "not-found", 4), (403, "not-permitted", 5), (409, "busy", 1),
                 (503, "timed-out", 6), (500, "failed", 1), (404, "unknown-verb", 1))
        for status, word, code in cases:
            self.answer("show", error(status, word))
            out, err = self.decamp("show", "sim1", code=code)
            self.assertEqual((out, err), ("", "decamp: sim1: it did not work\n  Try that.\n"))
            out, err = self.decamp("show", "--json", "sim1", code=code)
            self.assertEqual(json.loads(out), error(status, word)[1])
            self.assertIn("decamp: sim1:", err)

    def test_without_a_next_step(self):
        self.answer("ckpt", error(409, "busy", following=""))
        _, err = self.decamp("ckpt", "sim1", code=1)
        self.assertEqual(err, "decamp: sim1: it did not work\n")

    def test_escapes_are_harmless(self):
        self.answer("ckpt", error(409, "busy", reason="a\033]0;x\007b\nc"))
        _, err = self.decamp("ckpt", "sim1", code=1)
        self.assertIn("a?]0;x?b c\n", err)

    def test_no_daemon(self):
        nowhere = os.path.join(self.folder.name, "none")
        out, err = self.decamp("ps", "--socket", nowhere, code=3)
        self.assertEqual(out, "")
        self.assertRegex(err, rf"^decamp: {nowhere}: decampd does not answer: "
                              r"No such file or directory\n  .*systemctl start decampd\n$")
        out, _ = self.decamp("--socket", nowhere, "--json", "ps", code=3)
        self.assertEqual(json.loads(out)["error"]["code"], "no-answer")
        self.decamp("ps", "--socket", "/" + "x" * 200, code=3)

    def test_odd_answers(self):
        for answer in (b"<html>", b"", b"[1]", b"{", (500, b"oops")):
            self.answer("show", answer)
            _, err = self.decamp("show", "sim1", code=1)
            self.assertIn("is not understood", err)
        for answer in ({}, {"name": 7, "detail": [], "state": None}, {"detail": {"results": 3}}):
            self.answer("show", answer)
            self.decamp("show", "sim1")
        for verb in ("ps", "nodes", "history", "ls", "doctor"):
            self.answer(verb, {"jobs": 3, "nodes": [1, None], "checkpoints": [[], {}],
                               "files": [{}], "features": [None], "ok": True})
            self.decamp(verb, *(["x"] if verb in ("history", "ls") else []))
        self.answer("show", None)
        self.decamp("show", "sim1", code=3)

    def test_full_disk(self):
        self.answer("ps", {"jobs": [SUMMARY]})
        with open("/dev/full", "wb") as full:
            process = subprocess.run([DECAMP, "ps"], env=self.env(), stdout=full,
                                     stderr=subprocess.PIPE, check=False)
        self.assertEqual(process.returncode, 1)
        self.assertIn(b"No space left", process.stderr)

    def test_no_such_verb(self):
        for args in (("fly",), ("--fly",), ("help", "fly"), ("ps", "extra"), ("show",),
                     ("show", "a", "b"), ("ps", "--bad"), ("ps", "-z"), ()):
            self.decamp(*args, code=2)


VERBS = ("run", "adopt", "ps", "show", "why", "logs", "history", "recover", "wait", "ckpt", "migrate",
         "restore", "freeze", "thaw", "kill", "ls", "cat", "check", "nodes", "vacate", "doctor",
         "cluster init", "cluster invite", "cluster join", "version", "help")


class TestHelp(Case):
    def test_every_verb(self):
        overview, _ = self.decamp("--help")
        self.assertEqual(overview, self.decamp("help")[0])
        for verb in VERBS:
            self.assertIn(f"  {verb} ", overview)
            out, err = self.decamp(*verb.split(), "--help")
            self.assertEqual(err, "")
            self.assertTrue(out.startswith(f"Usage: decamp {verb} [option]..."), out)
            self.assertRegex(out, rf"(?s)Options:\n.*--json.*--socket PATH.*--help.*"
                                  rf"\nExample:\n  decamp {verb}\b")
            self.assertEqual(out, self.decamp("help", *verb.split())[0])
            self.assertLessEqual(max(map(len, out.splitlines())), 100)

    def test_manual_and_completion_know_every_verb(self):
        manual = (ROOT / "docs/decamp.1").read_text()
        completion = (ROOT / "packaging/decamp.bash").read_text()
        for verb in VERBS:
            self.assertRegex(manual, rf"(?m)^\.B[IR]? (?:\")?decamp {verb}\b")
            for word in verb.split():
                self.assertRegex(completion, rf"\b{word}\b")

    def test_version(self):
        out, _ = self.decamp("version")
        self.assertRegex(out, r"^decamp \d+\.\d+\.\d+\n$")
        self.assertEqual(out, self.decamp("--version")[0])
        out, _ = self.decamp("version", "--json")
        self.assertRegex(json.loads(out)["version"], r"^\d")


class TestTerminal(Case):
    def on_terminal(self, *args, columns=70, env=None, keys=None):
        """Run decamp on a terminal; return its exit code and all that it wrote."""
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        process = subprocess.Popen([DECAMP, *args], stdin=slave, stdout=slave, stderr=slave,
                                   env=env or self.env(), start_new_session=True)
        os.close(slave)
        text, end = b"", time.monotonic() + 60
        while time.monotonic() < end:
            if select.select([master], [], [], 0.1)[0]:
                try:
                    part = os.read(master, 65536)
                except OSError:
                    break
                if not part:
                    break
                text += part
            if keys and keys(text, process):
                keys = None
        os.close(master)
        return process.wait(60), text.decode()

    def test_width(self):
        self.answer("ps", {"jobs": [SUMMARY]})
        _, text = self.on_terminal("ps", columns=70, env=dict(self.env(), NO_COLOR="1"))
        lines = text.split("\r\n")
        self.assertEqual(len(lines[1]), 70)
        self.assertTrue(lines[1].endswith("..."))
        self.assertNotIn("\033", text)

    def test_colour(self):
        self.answer("ps", {"jobs": [SUMMARY]})
        _, text = self.on_terminal("ps")
        self.assertIn("\033[32mrunning\033[0m", text)
        plain = re.sub(r"\033\[[0-9]*m", "", text).split("\r\n")
        self.assertEqual(len(plain[1]), 70)

    def test_progress(self):
        release = threading.Event()
        self.addCleanup(release.set)
        self.answer("ckpt", lambda _: release.wait(120) and {"seq": 18})
        self.answer("show", dict(SUMMARY, state="checkpointing", step="copy pages", step_done=3,
                                 step_total=4))

        def keys(text, _process):
            if b"copy pages" in text:
                release.set()
                return True
            return False

        code, text = self.on_terminal("ckpt", "sim1", keys=keys)
        self.assertEqual(code, 0)
        self.assertRegex(text, r"\r\x1b\[Ksim1: copy pages, 75 %, \d+ s")
        self.assertRegex(text, r"\r\x1b\[Ksim1: checkpoint 18 is committed")

    def test_progress_of_vacate(self):
        release = threading.Event()
        self.addCleanup(release.set)
        self.answer("vacate", lambda _: release.wait(120) and {"moved": 1, "jobs_left": []})
        self.answer("ps", {"jobs": [SUMMARY, dict(SUMMARY, name="m", state="moving"),
                                    dict(SUMMARY, name="o", state="moving")]})

        def keys(text, _process):
            if b"m: moving (and 1 more)" in text:
                release.set()
                return True
            return False

        code, text = self.on_terminal("vacate", keys=keys)
        self.assertEqual((code, "1 moved, 0 left here" in text), (0, True), text)


if __name__ == "__main__":
    if not os.access(DECAMP, os.X_OK):
        sys.exit(f"{DECAMP} is missing")
    unittest.main(verbosity=1)
