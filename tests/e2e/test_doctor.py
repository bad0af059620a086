#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""doctor, ps, show, history and nodes tell a user what is going on, without a log."""

from common import check, check_counter, check_equal, counter_argv, main, submit, wait_for

NAMES = ("criu", "cgroup v2", "eBPF", "logind")


def test_doctor(lab):
    """doctor tells what this kernel offers, what is used and why."""
    report = lab[1].decamp("doctor")
    features = {feature["name"]: feature for feature in report["features"]}
    check(report["ok"], "this host can run, checkpoint and restore jobs")
    for name in NAMES:
        check(name in features, f"it judges {name}")
    check(all(isinstance(f["have"], bool) and f["use"] and f["why"] for f in features.values()),
          "every feature tells whether it is there, what is used and why")
    check(any("bus" in warning or "logind" in warning for warning in report["warnings"]),
          "it warns that logins are not noticed")
    text = lab[1].run([lab.build / "decamp", "doctor"]).stdout
    check("criu" in text and "{" not in text, "without --json it speaks to people")
    lab[1].start_logind()
    after = {f["name"]: f for f in lab[1].decamp("doctor")["features"]}
    check(after["logind"]["have"], "with logind on the bus it says so")


def test_nodes(lab):
    """nodes lists every host with its room, state and what it offers."""
    def all_told():
        # That a host is alive may be known before its first report is.
        nodes = lab[3].decamp("nodes")["nodes"]
        return nodes if all(node["state"] == "alive" and node["mem_free"] > 0
                            for node in nodes) else None
    nodes = wait_for(all_told, 30, "what all hosts report")
    check_equal(sorted(node["name"] for node in nodes), [host.name for host in lab.hosts],
                "all hosts are listed")
    check_equal([node["name"] for node in nodes if node["self"]], ["host3"], "this one is marked")
    check(all(node["room"].startswith("room") for node in nodes),
          "state, room and resources are told")


def rows_of(lab, host, name):
    return [row for row in host.decamp("ps", user=lab.user)["jobs"] if row["name"] == name]


def test_job_views(lab):
    """ps, show and history agree from every host and tell measured numbers."""
    job = submit(lab, lab[1], "views", counter_argv("mark-1", 250, 0.05), "--every", "2")
    job.wait_seq(2)
    for host in lab.hosts:
        rows = wait_for(lambda at=host: rows_of(lab, at, "views"), 30, f"it in ps of {host.name}")
        check_equal(len(rows), 1, f"ps on {host.name} lists it")
        check_equal((rows[0]["host"], rows[0]["home"], rows[0]["user"], rows[0]["protected"]),
                    ("host1", "host1", lab.user, True), "it tells where it runs and lives")
    # It reads the newest checkpoint, of which a holder may not answer for a moment.
    detail = wait_for(lambda: (lambda detail: detail.get("pause_us_median") and detail)(
        job.show(at=lab[4])["detail"]), 30, "the measured pause")
    check(detail["sent_bytes_median"] > 0,
          "show tells the measured pause and bytes")
    check(0 < detail["recovery_point_ms"] < 15000, "show tells how old the recovery point is")
    wait_for(lambda: len(job.ask("history", job.name, at=lab[5])["checkpoints"]) >= 2, 30,
             "two checkpoints in history")
    check(True, "history lists the checkpoints, from any host")
    points = job.ask("history", job.name)["checkpoints"]
    check(points[1]["sent_bytes"] < points[0]["sent_bytes"],
          "a later checkpoint sends less than the first")
    job.wait_collected()
    check_counter(job, 250)
    ended = [row for row in lab[1].decamp("ps", "--all", user=lab.user)["jobs"]
             if row["name"] == "views"]
    check(ended and ended[0]["exit_code"] == 0, "ps --all still lists it at home")
    points = job.ask("history", job.name)["checkpoints"]
    check(len(points) >= 3, "so does history")


if __name__ == "__main__":
    main(globals())
