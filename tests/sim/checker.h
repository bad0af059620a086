/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The judge of the registers. It reads what acceptors write to their disks, nothing else, and
 * keeps for every job all ballots with who ever accepted them. A value is chosen once a quorum
 * accepted it. Broken invariants abort with a line that names the job.
 *
 *   I2  one value per ballot; chosen values form one chain
 *   I3  one sealed successor per epoch; nothing else follows a seal; an epoch begins with what
 *       its seal holds, chosen
 *   I4  tokens strictly increase along it, a checkpoint number never falls, an end is final
 *   I6  nobody answers for an epoch that he was not installed in
 *   a tombstone (core_write.is_over) is only of a job whose end is chosen
 *   a takeover keeps the whole history: what was committed stays readable
 */
#pragma once

#include "overlay/core/codec.h"
#include "tests/sim/simnet.h"

enum { CHECKER_JOBS_MAX = 128, CHECKER_NONE = UINT32_MAX };

struct checker_ballot {
	struct core_ballot ballot;
	uint64_t hash;		 /* of the value */
	struct job_value *value; /* NULL once it is far behind */
	struct core_acceptors next;
	uint32_t accepted; /* mask over the acceptors */
	bool chosen;
};

struct checker_epoch {
	struct core_acceptors acceptors; /* count 0: not seen yet */
	uint32_t installed;		 /* who ever was; a mask */
};

struct checker_job {
	struct job_id id;
	struct core_acceptors acceptors; /* of the newest epoch */
	struct checker_epoch *epochs;
	uint32_t epoch_count, epoch_room;
	struct checker_ballot *ballots; /* sorted */
	uint32_t count, room;
	uint32_t tombstones; /* written, by whomever */
};

struct checker {
	const struct simnet *net;
	struct checker_job jobs[CHECKER_JOBS_MAX];
	uint32_t job_count;
	uint64_t chosen_count, epoch_count;
	/* The newest value of a job changed; before: NULL at first. */
	void (*chose)(void *ctx, const struct job_value *before, const struct job_value *after);
	void *ctx;
};

void checker_init(struct checker *checker, const struct simnet *net);
void checker_deinit(struct checker *checker);
void checker_wrote(struct checker *checker, uint32_t node, const struct core_write *write);
void checker_sent(struct checker *checker, uint32_t node, const struct core_send *send);
/* The newest chosen value of a job, or NULL. */
const struct job_value *checker_current(const struct checker *checker, const struct job_id *job);
/* A success was reported for this value: its checkpoint must be among the chosen ones. */
void checker_committed(const struct checker *checker, const struct job_value *value);
/* False if this acceptor's disk and another one's together would end the register. */
bool checker_can_spare(const struct checker *checker, const struct job_id *job,
		       const struct node_id *id);
void checker_fail(const struct checker *checker, const struct job_id *job, const char *what)
	__attribute__((noreturn));
