/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The nouns of the overlay that both halves of decampd share: ids, fencing tokens, the value of a
 * job's register, what members say of themselves. Fixed-size plain structs without pointers and
 * without padding, so that they pass the socketpair and the disk as they are. On the wire
 * overlay/core/codec writes them field by field, little-endian.
 *
 * Sources: Chkpt2Chkpt section 3 (guardian, worker, storage point); CASPaxos (register per key).
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Limits; every one is checked where a byte comes from outside. */
enum {
	OV_MEMBERS_MAX = 1024,	/* hosts in one cluster (this version) */
	OV_REPLICAS_MAX = 5,	/* acceptors of a job's register */
	OV_HOLDERS_MAX = 5,	/* storage peers named for one manifest or pack */
	OV_SHARDS_MAX = 16,	/* of one object that is kept as shards */
	OV_HISTORY_MAX = 4,	/* committed checkpoints that stay restorable */
	OV_AVOID_MAX = 8,	/* hosts where this job's restore failed */
	OV_SEALED_MAX = 2048,	/* bytes of a job's sealed description */
	OV_ORDER_MAX = 4096,	/* bytes of one agent-to-agent message (sealed) */
	OV_PACK_MAX = 20 << 20, /* bytes of one pack or manifest object */
	OV_JOBS_MAX = 1024,	/* jobs whose register one node keeps */
	OV_NAME_MAX = 64,	/* host and room names, with the NUL */
	OV_ADDR_MAX = 48,	/* textual IPv4/IPv6 address, with the NUL */
	OV_TAGS_MAX = 60,	/* all tags of a host, with blanks between and the NUL */
	OV_TAG_MAX = 32,	/* one tag, with the NUL */
	OV_NEEDS_MAX = 256,	/* bytes of a job's needs, see core/needs.h */
};

/* Issued by the cluster key at join; ring position = the id itself. All zero: nobody. */
struct node_id {
	uint8_t b[16];
};

/* Random, made by the submitting host. */
struct job_id {
	uint8_t b[16];
};

/* SHA-256 of an object as it lies on a peer's disk, that is of its ciphertext. */
struct object_hash {
	uint8_t b[32];
};

/*
 * Names one incarnation of a job: the ballot of the takeover (or creation) that made it.
 * Strictly increasing along a register's chain of values; compared by counter, then node.
 */
struct fence_token {
	uint64_t counter;
	struct node_id node;
};

enum job_state {
	JOB_STATE_IDLE = 1,	 /* nobody owns it: the guardian looks for a host */
	JOB_STATE_HELD = 2,	 /* owned; the owner renews its lease */
	JOB_STATE_DONE = 3,	 /* ended with exit_status; results wait for the home host */
	JOB_STATE_COLLECTED = 4, /* ended and brought home; may be forgotten */
	JOB_STATE_KILLED = 5,	 /* ended by its user; nothing to bring home but the logs */
};

enum { FENCE_STRICT = 1, FENCE_COMMIT = 2 };

/* Why a host is in a job's avoid list. */
enum avoid_reason {
	AVOID_RESTORE_FAILED = 1,
	AVOID_BUSY = 2,		 /* somebody sat down there, or it was being emptied */
	AVOID_NO_CHECKPOINT = 3, /* nothing to restore, and it was submitted elsewhere */
};

/* What machine code runs on a host; 0: not known, or any. */
enum cpu_arch {
	CPU_ARCH_X86_64 = 1,
	CPU_ARCH_AARCH64,
	CPU_ARCH_RISCV64,
	CPU_ARCH_PPC64LE,
	CPU_ARCH_S390X,
	CPU_ARCH_END,
};

/* Of a host's kernel and its place in the machine: what a restore can depend on. */
enum kernel_feature {
	KERNEL_NAMESPACES = 1 << 0, /* fresh PID, mount, IPC and UTS namespaces */
	KERNEL_OVERLAY = 1 << 1,    /* an overlay over the root, which is none itself */
	KERNEL_FREEZER = 1 << 2,    /* cgroup v2 with its freezer: what fence=strict relies on */
	KERNEL_RSEQ = 1 << 3,	    /* a C library that registered rseq does so for good */
	KERNEL_GUARDS = 1 << 4,	    /* guarded pages inside a mapping (Linux 6.13) */
	KERNEL_EXEC_SEAL = 1 << 5,  /* a memfd that can never become a program (6.3) */
	KERNEL_RSEQ_LONG = 1 << 6,  /* rseq areas above 32 bytes (6.3) */
	KERNEL_SHADOW_STACK = 1 << 7,
	KERNEL_PIDS = 1 << 8, /* PIDs above 32767 */
	KERNEL_FEATURES = (1 << 9) - 1,
};

/* As in KERNEL_VERSION, without the last part: patches change nothing that a job relies on. */
#define OV_KERNEL_VERSION(major, minor) ((uint32_t)(major) << 16 | (uint32_t)(minor))

/* One committed checkpoint. seq starts at 1; seq 0: none yet. */
struct ckpt_ref {
	uint64_t seq;
	struct object_hash manifest;
	uint32_t manifest_size;
	uint32_t holder_count;
	struct node_id holders[OV_HOLDERS_MAX];
	uint64_t wall_ms; /* when it was frozen, by the capturing host's clock; for people */
};

/*
 * What a job's register holds. The overlay reads all but `sealed`; that is AEAD ciphertext under
 * the cluster's worker key (the job's own key, its user, name, command), opaque out here.
 */
struct job_value {
	struct job_id job;
	struct fence_token token;
	struct node_id owner;  /* zero in IDLE */
	struct node_id home;   /* submitting host */
	struct node_id target; /* wished next owner (migrate); zero: any */
	uint32_t state;	       /* enum job_state */
	uint32_t fence;	       /* FENCE_STRICT or FENCE_COMMIT */
	int32_t exit_status;   /* wait(2) status in DONE/KILLED */
	uint32_t history_count;
	struct ckpt_ref history[OV_HISTORY_MAX]; /* newest first */
	uint32_t avoid_count;
	uint32_t sealed_size;
	struct node_id avoid[OV_AVOID_MAX];
	uint64_t submit_wall_ms;
	uint64_t mem_bytes;   /* what a host must have free to take it */
	uint64_t cpu_need[4]; /* CPU feature words: a host must have all these bits (host/cpu) */
	uint8_t sealed[OV_SEALED_MAX];
	/* Values on disks of before this was added end here. */
	uint32_t arch;	      /* enum cpu_arch */
	uint32_t kernel_need; /* enum kernel_feature: a host must have all these bits */
	uint32_t needs_size;  /* 0: nothing was asked for */
	uint32_t reserved;
	uint8_t needs[OV_NEEDS_MAX];	      /* what its user asked for, see core/needs.h */
	uint64_t avoid_wall_ms[OV_AVOID_MAX]; /* when, by that host's clock; for people */
	uint32_t avoid_why[OV_AVOID_MAX];     /* enum avoid_reason; for people */
};

enum member_state { MEMBER_ALIVE = 1, MEMBER_SUSPECT = 2, MEMBER_DEAD = 3, MEMBER_LEFT = 4 };

enum {
	MEMBER_TAKES_JOBS = 1 << 0,   /* willing to restore jobs now */
	MEMBER_STORES_PACKS = 1 << 1, /* willing to take new packs now */
	MEMBER_USER_PRESENT = 1 << 2, /* somebody is logged in */
	MEMBER_VACATING = 1 << 3,     /* drained by an administrator or shutting down */
	MEMBER_LOSES_CLOCK = 1 << 4,  /* VM that may be paused: fence=commit only */
};

/* What a host says of itself; gossiped with its incarnation number. */
struct member_state_report {
	uint32_t flags;
	uint32_t load_milli; /* load average of one minute * 1000 / CPUs */
	uint64_t mem_free_bytes;
	uint64_t store_free_bytes;
	uint64_t store_used_bytes;
	uint64_t cpu_features[4];
	uint32_t jobs;
	uint32_t stays; /* how likely it is on for the next day: 1 + permille; 0: not known yet */
	uint16_t arch;	/* enum cpu_arch */
	uint16_t cores; /* that jobs may use */
	uint32_t kernel_version; /* OV_KERNEL_VERSION() */
	uint32_t kernel_features;
	char tags[OV_TAGS_MAX]; /* given by its administrator: words with one blank between */
};

/* One row of the member table, as the agent sees it. */
struct member_info {
	struct node_id id;
	uint32_t state; /* enum member_state */
	uint32_t is_self;
	uint64_t incarnation;
	uint64_t silent_ms; /* since it last answered us or someone vouched for it */
	struct member_state_report report;
	char hostname[OV_NAME_MAX];
	char room[OV_NAME_MAX]; /* failure domain */
	char addr[OV_ADDR_MAX];
	uint16_t port;
	uint16_t reserved[3];
};

/*
 * Membership card: fixed size, signed with Ed25519 by the cluster key over all bytes before
 * `signature`. It binds an id to a host name, a room, the key of its TLS certificate and the
 * key with which its agent signs manifests. Verified by the overlay before a record enters the
 * member table and by the agent before it believes a manifest.
 */
struct node_card {
	uint32_t version; /* 1 */
	uint32_t reserved;
	struct node_id id;
	uint8_t tls_public[32];	 /* Ed25519 */
	uint8_t sign_public[32]; /* Ed25519 */
	uint64_t issued_wall_ms;
	uint64_t expires_wall_ms;
	char hostname[OV_NAME_MAX];
	char room[OV_NAME_MAX];
	uint8_t signature[64];
};

_Static_assert(sizeof(struct node_card) == 8 + 16 + 64 + 16 + 128 + 64, "no padding");
_Static_assert(sizeof(struct ckpt_ref) == 8 + 32 + 8 + 16 * OV_HOLDERS_MAX + 8, "no padding");
_Static_assert(sizeof(struct job_value) ==
		       offsetof(struct job_value, arch) + 16 + OV_NEEDS_MAX + 12 * OV_AVOID_MAX,
	       "no padding");
_Static_assert(sizeof(struct member_state_report) == 8 + 24 + 32 + 8 + 12 + OV_TAGS_MAX,
	       "no padding");
_Static_assert(sizeof(struct member_info) == 16 + 8 + 16 + 144 + 128 + 48 + 8, "no padding");
