#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""A lab of hosts on one machine, each with its own namespaces, root and cgroup, on a bridge.

                 switch: a network namespace with the bridge and the rules of nftables
        port1 |     port2 |     port3 |     port4 |     port5 |        (veth pairs)
         eth0 |      eth0 |      eth0 |      eth0 |      eth0 |
        host1       host2       host3       host4       host5          10.77.0.1 .. .5

Nothing is made in the machine's own network or mount namespace. All that a lab makes bears its id:
DECAMP_LAB in the environment, the name of its cgroup and of its directory. A Lab is a context
manager; however it is left, it removes everything, and assert_clean() proves it.

    lab.py up [N]                a lab with a running cluster, until the end of stdin or Ctrl-C
    lab.py list                  the labs there are
    lab.py exec ID HOST CMD...   a command in a host
    lab.py clean [ID]            remove a lab, or all whose owner is dead
"""

import atexit
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

sys.dont_write_bytecode = True

import traces
from host import Host, ROOT, SOCKET, CliError
from traces import LabError, wait_for

HOSTS_MAX = 20
TIMINGS = {"probe_ms": 300, "suspect_ms": 1500, "renew_ms": 1000, "lease_ms": 4000,
           "hold_ms": 5000}


class Lab:
    """name: where the logs go, below lab-logs of the build (DECAMP_BUILD, or build)."""

    host_class = Host

    def __init__(self, hosts=5, name="lab", settings=None):
        if os.geteuid():
            raise LabError("a lab needs root: run it as root")
        if not 1 <= hosts <= HOSTS_MAX:
            raise LabError(f"{hosts} hosts: 1 to {HOSTS_MAX} are possible")
        self.id = f"{os.getpid()}-{secrets.token_hex(3)}"
        self.dir = traces.base_root() / (traces.PREFIX + self.id)
        self.cgroup = traces.cgroup2_root() / (traces.PREFIX + self.id)
        self.build = Path(os.environ.get("DECAMP_BUILD", ROOT / "build"))
        self.log_dir = self.build / "lab-logs" / name
        self.extra_settings = settings or {}
        self.pins = traces.Pins()
        self.cuts = set()
        self.groups = []
        self.loss_percent = 0
        self.rates = {}
        self.switch = None
        self.criu = None
        self.started = time.monotonic()
        self.listeners = []
        self.hosts = [self.host_class(self, index) for index in range(1, hosts + 1)]

    # ---- life ----

    def __enter__(self):
        self._catch_signals()
        atexit.register(self.close)
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_):
        self.close()

    def _catch_signals(self):
        def leave(number, _frame):
            raise SystemExit(128 + number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, leave)

    def _start(self):
        traces.sweep_orphans()
        shutil.rmtree(self.log_dir, ignore_errors=True)
        self.log_dir.mkdir(parents=True)
        self.dir.mkdir(mode=0o711)
        (self.dir / "owner").write_text(f"{os.getpid()} {traces.start_time(os.getpid())}")
        self.cgroup.mkdir()
        self._start_switch()
        for host in self.hosts:
            host.make_disk()
            host.begin_boot()
        for host in self.hosts:
            host.end_boot()
        self.save()

    def close(self):
        """Remove all. Safe to call again, and half-way through a start."""
        atexit.unregister(self.close)
        previous = [(number, signal.signal(number, signal.SIG_IGN))
                    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        for host in self.hosts:
            if host.pid:
                traces.kill(host.pid, signal.SIGKILL)
            host.pid = None
            if host.init:
                host.init.stdin.close()
        traces.remove_cgroup(self.cgroup)
        for host in self.hosts:
            for process in (host.init, *(s.popen for s in (host.daemon, host.logind) if s)):
                if process:
                    process.wait()
            if host.init:
                host.init.stdout.close()
            host.init = host.daemon = host.logind = None
        if self.switch:
            self.switch.stdin.close()
            self.switch.wait()
            self.switch = None
        shutil.rmtree(self.dir, ignore_errors=True)
        for number, handler in previous:
            signal.signal(number, handler)

    def assert_clean(self, seconds=60):
        """After close(): fail if a process, namespace, mount, cgroup or directory is left."""
        end = time.monotonic() + seconds
        while True:
            left = traces.traces(self.id) + self.pins.users()
            if not left:
                self.pins.release()
                return
            if time.monotonic() > end:
                raise LabError("the lab left something behind: " + "; ".join(left))
            time.sleep(0.05)

    def assert_sound(self):
        """After close(): fail if a sanitizer has spoken in a log."""
        for log in sorted(self.log_dir.glob("*.log")):
            for line in log.read_text(errors="replace").splitlines():
                if re.search(r"ERROR: \w+Sanitizer|: runtime error: ", line):
                    raise LabError(f"{log}: {line}")

    def save(self):
        """For lab.py exec: who is where."""
        (self.dir / "lab.json").write_text(json.dumps(
            {"hosts": {host.name: host.pid for host in self.hosts},
             "cgroup": str(self.cgroup), "build": str(self.build)}))

    def event(self, text):
        for listener in self.listeners:
            listener(text)
        with (self.log_dir / "events.log").open("a") as log:
            log.write(f"{time.monotonic() - self.started:9.3f} {text}\n")

    def __getitem__(self, name):
        for host in self.hosts:
            if name in (host.name, host.index):
                return host
        raise LabError(f"{name}: no such host")

    def hidden_folders(self):
        """Binds of what hosts need and would not see: the project, its build and criu, where they
        lie below a folder that each host has for itself, or on a file system of their own."""
        own = [Path("/") / each.name for each in (self.hosts[0].dir / "disk").iterdir()]
        own += [Path("/tmp"), Path("/run"), Path("/dev")]
        needed = {ROOT, self.build.resolve(), Path(self.find_criu()).resolve().parent}
        return [[str(path), str(path), True] for path in sorted(needed)
                if path.stat().st_dev != os.stat("/").st_dev
                or any(folder in path.parents for folder in own)]

    @staticmethod
    def mounted_folders():
        """Binds of the machine's system folders that are file systems of their own."""
        return [[top, top, True] for top in ("/usr", "/opt", "/lib", "/bin", "/sbin")
                if os.path.ismount(top)]

    # ---- network ----

    def _start_switch(self):
        # It ends with its stdin, that is with this process.
        self.switch = subprocess.Popen(["unshare", "--net", "--", "cat"], stdin=subprocess.PIPE,
                                       stdout=subprocess.DEVNULL, start_new_session=True,
                                       env={**os.environ, "DECAMP_LAB": self.id})
        pid = self.switch.pid
        wait_for(lambda: traces.namespace_of(pid, "net") not in
                 (None, traces.namespace_of("self", "net")), 5, "start of the switch", 0.005)
        self.pins.add(pid)
        self.ip(pid, "link add name br0 type bridge stp_state 0 forward_delay 0",
                "link set br0 up")

    @staticmethod
    def ip(pid, *commands):
        """Commands of ip(8) in the network namespace of a process."""
        done = subprocess.run(["nsenter", "-t", str(pid), "-n", "ip", "-batch", "-"], text=True,
                              input="\n".join(commands) + "\n", capture_output=True, check=False)
        if done.returncode:
            raise LabError(f"ip {'; '.join(commands)}: {done.stderr.strip()}")

    def connect(self, host):
        self.ip(self.switch.pid,
                f"link add {host.port} type veth peer name eth0 address {host.mac} "
                f"netns {host.pid}",
                f"link set {host.port} master br0 up")
        self.ip(host.pid, "link set lo up", f"addr add {host.addr}/16 dev eth0",
                "link set eth0 up")
        if host.name in self.cuts:
            self.cut(host)

    def disconnect(self, host):
        self.ip(self.switch.pid, f"link del {host.port}")

    def cut(self, host):
        """Pull the cable of a host."""
        self.event(f"link cut: {host.name}")
        self.cuts.add(host.name)
        self.ip(self.switch.pid, f"link set {host.port} down")

    def mend(self, host):
        self.event(f"link mended: {host.name}")
        self.cuts.discard(host.name)
        self.ip(self.switch.pid, f"link set {host.port} up")

    def partition(self, *groups):
        """Hosts reach only those of their own group; hosts in no group form one. None: heal."""
        self.event("partition: " + (" | ".join(
            ",".join(host.name for host in group) for group in groups) or "healed"))
        named = {host for group in groups for host in group}
        rest = [host for host in self.hosts if host not in named]
        self.groups = [list(group) for group in groups] + [rest] if groups else []
        self._filter()

    def lose(self, percent):
        """Drop so many of 100 packets between hosts."""
        self.event(f"packet loss: {percent} %")
        self.loss_percent = percent
        self._filter()

    def throttle(self, host, kilobytes_per_second):
        """Let streams bring so much to a host, or None: all they can. Datagrams pass."""
        self.event(f"streams to {host.name}: {kilobytes_per_second or 'unlimited'} kB/s")
        self.rates.pop(host.port, None)
        if kilobytes_per_second:
            self.rates[host.port] = kilobytes_per_second
        self._filter()

    def _filter(self):
        rules = []
        for group in self.groups:
            inside = ", ".join(f'"{host.port}"' for host in group)
            outside = ", ".join(f'"{host.port}"' for other in self.groups if other is not group
                                for host in other)
            if inside and outside:
                rules.append(f"iifname {{ {inside} }} oifname {{ {outside} }} drop")
        if self.loss_percent:
            rules.append(f"numgen random mod 100 < {self.loss_percent} drop")
        rules += [f'oifname "{port}" ether type ip ip protocol tcp limit rate over {rate} '
                  "kbytes/second drop" for port, rate in self.rates.items()]
        text = "flush ruleset\ntable bridge lab {\n chain between_hosts {\n" \
               "  type filter hook forward priority 0; policy accept;\n  " + \
               "\n  ".join(rules) + "\n }\n}\n"
        done = subprocess.run(["nsenter", "-t", str(self.switch.pid), "-n", "nft", "-f", "-"],
                              input=text, text=True, capture_output=True, check=False)
        if done.returncode:
            raise LabError(f"nft: {done.stderr.strip()}\n{text}")

    # ---- decamp ----

    def settings(self, host):
        """decampd's configuration of a host."""
        return {"listen_addr": host.addr, "advertise_addr": host.addr, "port": 7431,
                "room": "room" + "ABCDEFGHIJKLMNOPQRST"[host.index - 1], "copies": 3, **TIMINGS,
                "quota_bytes": "4G", "reserve_bytes": "100M", "return_idle_s": 5,
                "keeper_path": self.build / "decamp-keeper",
                "capture_path": self.build / "decamp-capture", "criu_path": self.find_criu(),
                **self.extra_settings}

    def find_criu(self):
        """Path of the CRIU to use; it is built once if the machine has none that is new enough."""
        if self.criu is None:
            done = subprocess.run([str(ROOT / "scripts/criu")], text=True, stdout=subprocess.PIPE,
                                  check=False)
            if done.returncode:
                raise LabError("no usable criu: scripts/criu says why")
            self.criu = done.stdout.strip()
        return self.criu

    def start_daemons(self, hosts=None):
        for host in hosts or self.hosts:
            host.start_daemon()
        for host in hosts or self.hosts:
            host.wait_daemon()

    def make_cluster(self):
        """A cluster of all hosts, founded by the first."""
        first, *others = self.hosts
        first.decamp("cluster init", "--addr", first.addr)
        for host in others:
            self.admit(host)
        self.wait_members()

    def admit(self, host, by=None):
        token = (by or self.hosts[0]).decamp("cluster invite")["token"]
        host.decamp("cluster join", token, "--addr", host.addr)

    def wait_members(self, hosts=None, seconds=20):
        """Until each of these hosts (all that are on) sees all of them alive, and no other."""
        hosts = hosts or [host for host in self.hosts if host.pid]
        names = {host.name for host in hosts}

        def agreed():
            return all(self.alive_seen_by(host) == names for host in hosts)
        wait_for(agreed, seconds, f"agreement that {', '.join(sorted(names))} are alive", 0.2)

    def alive_seen_by(self, host):
        try:
            nodes = host.decamp("nodes")["nodes"]
        except CliError:
            return set()
        return {node["name"] for node in nodes if node["state"] == "alive"}

    def job_user(self):
        """Whose jobs to run: DECAMP_LAB_USER, or root where no other user's can be captured."""
        wanted = os.environ.get("DECAMP_LAB_USER", "alice")
        features = self.hosts[0].decamp("doctor").get("features", [])
        hindrance = [feature for feature in features
                     if feature["name"] == "jobs of other users" and not feature["have"]]
        if hindrance and wanted != "root":
            print(f"NOTE: jobs run as root, not {wanted}: {hindrance[0].get('why')}", flush=True)
            return "root"
        return wanted

    def where(self, marker):
        """Ground truth: hosts on which a process runs whose command line holds marker."""
        return [host for host in self.hosts if host.pids(marker)]


# ---- command line ----

def labs():
    found = {}
    for directory in sorted(traces.base_root().glob(traces.PREFIX + "*")):
        try:
            found[directory.name[len(traces.PREFIX):]] = json.loads(
                (directory / "lab.json").read_text())
        except (OSError, ValueError):
            pass
    return found


def up(count):
    with Lab(count, "up") as lab:
        lab.start_daemons()
        lab.make_cluster()
        for host in lab.hosts:
            host.start_logind()
        print(f"lab {lab.id} is up, logs in {lab.log_dir}\n"
              f"try: {sys.argv[0]} exec {lab.id} host1 {lab.build}/decamp nodes\n"
              "the end of input or Ctrl-C removes it", flush=True)
        sys.stdin.read()
    lab.assert_clean()


def execute(lab_id, name, command):
    lab = labs().get(lab_id)
    if not lab or not lab["hosts"].get(name):
        raise LabError(f"{lab_id} {name}: no such running host; see {sys.argv[0]} list")
    (Path(lab["cgroup"]) / name / "cgroup.procs").write_text(str(os.getpid()))
    environment = {**os.environ, "DECAMP_LAB": lab_id, "DECAMP_SOCKET": SOCKET}
    os.execvpe("nsenter", ["nsenter", "-t", str(lab["hosts"][name]), "-m", "-u", "-i", "-n", "-p",
                           "-C", "--wd=/", "--", *command], environment)


def main(arguments):
    verb = arguments[0] if arguments else ""
    if verb == "up":
        up(int(arguments[1]) if len(arguments) > 1 else 5)
    elif verb == "list":
        for lab_id, lab in labs().items():
            print(lab_id, *(f"{name}={pid or 'off'}" for name, pid in lab["hosts"].items()))
    elif verb == "exec" and len(arguments) > 3:
        execute(arguments[1], arguments[2], arguments[3:])
    elif verb == "clean":
        swept = arguments[1:] or traces.sweep_orphans()
        for lab_id in arguments[1:]:
            traces.sweep(lab_id)
        print("removed: " + (", ".join(swept) or "nothing"))
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        sys.exit(1)
