/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * `decamp-capture dump`: one complete snapshot of a process tree into plain image files, by the
 * native engine, called like `criu dump`. For CRIU's test suite and for comparing both engines.
 *
 *   decamp-capture dump --tree PID --images-dir DIR [--leave-running] [--shell-job]
 *                       [--log-file NAME] [--timeout SECONDS] [options of CRIU without effect here]
 *
 * After success the tree is gone unless --leave-running, the images are those of `criu dump`
 * (pages-N.img are whole), and DIR/NAME tells of it. After a failure DIR is as it was, but for
 * NAME, and the tree runs on.
 */
#pragma once

enum {
	ONESHOT_DONE = 0,
	ONESHOT_FAILED = 1,
	ONESHOT_USAGE = 2,
	ONESHOT_NOT_COVERED = 3, /* last line on stderr is the reason: use `criu dump` */
};

/* argv[0] is "dump"; returns the exit code. */
int oneshot_main(int argc, char **argv);
