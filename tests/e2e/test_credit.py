#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Who keeps a job's checkpoints earns byte-hours for it, and who serves a restore a bonus."""

from common import check, check_counter, check_equal, counter_argv, main, submit, wait_for

STEPS = 240


def credit(asked):
    """Of each host by name, as this one sees it."""
    return {node["name"]: node["credit"] for node in asked.decamp("nodes", "--credit")["nodes"]}


def answered(rows):
    return all(row["answered"] and not row["unverified_receipts"] for row in rows.values())


def total(rows, side, what):
    return sum(row[side][what] for row in rows.values())


def test_credit(lab):
    """Checkpoints earn byte-hours, a restore on another host the bonus; all hosts see the same."""
    home = lab[1]
    job = submit(lab, home, "credit", counter_argv("mark-9", STEPS, 0.05), "--every", "2")
    job.wait_seq(2)

    def earned():
        rows = credit(lab[4])
        return rows if rows["host1"]["taken"]["byte_hours"] > 0 and answered(rows) else None
    rows = wait_for(earned, 20, "receipts of every host for what is kept", 0.3)
    check_equal(rows["host1"]["given"]["byte_hours"], 0, "the owner keeps nothing for others")
    check_equal(total(rows, "given", "byte_hours"), rows["host1"]["taken"]["byte_hours"],
                "what the holders were given is what the owner took")
    check_equal(total(rows, "given", "restores"), 0, "nothing was restored yet")

    # Who keeps least has to fetch most.
    target = min(lab.hosts[1:], key=lambda host: rows[host.name]["given"]["byte_hours"])
    job.migrate(target)
    job.wait_host([target])

    def served():
        rows = credit(lab[1])
        return rows if rows[target.name]["taken"]["restores"] > 0 and answered(rows) else None
    rows = wait_for(served, 20, "receipts for the restore", 0.3)
    servers = [name for name, row in rows.items() if row["given"]["restores"] > 0]
    check(servers and target.name not in servers, f"who served the restore: {servers}")
    check(all(rows[name]["given"]["restored_bytes"] > 0 for name in servers), "with its bytes")
    check_equal(total(rows, "taken", "restores"), len(servers),
                "one restore each, however many objects")
    check_equal(sum(row["forged_receipts"] + row["unverified_receipts"] for row in rows.values()),
                0, "every signature is right")
    job.wait_collected()
    check_counter(job, STEPS)


if __name__ == "__main__":
    main(globals(), settings={"credit_round_s": 1, "copies": 2})
