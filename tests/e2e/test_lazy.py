#!/usr/bin/python3
# SPDX-License-Identifier: LGPL-2.1-or-later
"""Jobs that run before all of their memory is there: moved, checkpointed there, moved again."""

from common import check, check_counter, counter_argv, main, submit, wait_for

STEPS, MEGABYTES = 500, 256


def said(lab, host, text):
    return any(text in path.read_text(errors="replace")
               for path in lab.log_dir.glob(f"{host.name}*") if path.is_file())


def test_moves(lab):
    """Restored lazily twice; its checkpoints wait for its memory; its result is undisturbed."""
    home = lab[1]
    argv = counter_argv("mark-1", STEPS, 0.05, MEGABYTES)
    job = submit(lab, home, "lazy", argv, "--every", "5")
    job.wait_seq(2, seconds=120)
    for target in (lab[2], lab[3]):
        seq = job.show()["seq"]
        job.ask("migrate", job.name, target.name)
        job.wait_host([target], seconds=120)
        wait_for(lambda host=target: said(lab, host, "all of its memory is here"), 120,
                 "the rest of its memory")
        check(True, f"it ran on {target.name} before all of its memory was there")
        job.wait_seq(seq + 2, seconds=120)
        check(True, "and is checkpointed there")
    job.wait_collected(seconds=300)
    check_counter(job, STEPS, MEGABYTES)


if __name__ == "__main__":
    main(globals(), hosts=4)
