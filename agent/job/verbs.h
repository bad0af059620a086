/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The API's verbs (docs/api.md): each is one function that runs in a connection's thread.
 * Private to agent/job.
 */
#pragma once

#include <json-c/json.h>

#include "agent/job/job.h"

/* The job that a request names, found here or in the cluster. */
struct target {
	struct agent *agent;
	int channel;		/* side channel of this request */
	struct job *local;	/* with a reference, or NULL */
	struct job_value value; /* newest known */
	struct job_seal seal;
	bool here;		   /* forwarded to us: do not forward again */
	struct ckpt_ref *versions; /* of a folder: all that are kept, newest first; owned */
	size_t version_count;
	struct member_info *members;
	size_t member_count;
};

/* Finds "job" of the request among those that the caller may steer; else an error reply. */
int target_find(struct agent *a, const struct api_call *call, struct target *ret_target,
		struct api_reply *reply) _must_check_;
void target_deinit(struct target *t);

/* Runs the verb on the job's owner; -EHOSTUNREACH error reply if nobody owns it or is there. */
int target_forward(struct target *t, const char *verb, const struct api_call *call, int timeout_ms,
		   struct api_reply *reply) _must_check_;
int target_manifest(struct target *t, struct manifest **ret_manifest) _must_check_;
const struct member_info *target_host(const struct target *t, const char *name);

/* ---- verbs_submit.c ---- */
/* "1000" if the user has none. */
void job_user_name(uid_t uid, char *name, size_t size);
/* For people and for file names. */
bool job_good_name(const char *name);

/* ---- why.c ---- */
enum {
	WHY_TEXT_MAX = 1024, /* all reasons against one host */
	WHY_LINES_MAX = 16,  /* hosts of which a summary tells */
};
/* Why the job may not go there, of the bars asked for (overlay/core/match.h); false: it may. */
bool why_not(const struct member_info *host, const struct job_value *value, uint32_t asked,
	     char text[WHY_TEXT_MAX]);
/* "waits_for" and "refusals" of a job that nobody has and nobody can take; else nothing. */
void why_add_stuck(struct json_object *json, const struct job_value *value,
		   const struct member_info *members, size_t count);
/* "needs" as text, if there are any. */
void why_add_needs(struct json_object *json, const struct job_value *value);

/* verbs_credit.c: "credit" into the nodes, one for each member, and "refused_receipts". */
int credit_describe(int channel, const struct member_info *members, size_t count,
		    struct json_object *nodes, struct json_object *reply) _must_check_;

/* verbs_files.c: a file of a layer as the job sees it. mounts: of the manifest's notes ("N path", ..);
 * the caller's, or NULL. */
struct json_object *files_mounts_of(const struct manifest *m);
bool files_absolute_path(struct json_object *mounts, const char *upper_path, char *out,
			 size_t size);

/*
 * As target_find(), of the folder that "folder" names: only what reads versions asks so, every
 * other verb knows jobs alone.
 */
int target_find_folder(struct agent *a, const struct api_call *call, struct target *ret_target,
		       struct api_reply *reply) _must_check_;

int verb_folder_create(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_list(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_delete(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_begin(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_write(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_add(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_made(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_folder_commit(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_run(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_adopt(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_ps(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_show(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_why(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_history(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_recover(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_logs(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_ls(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_snapshot(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_read(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_cat(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_ckpt(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_freeze(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_thaw(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_kill(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_migrate(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_restore(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_check(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_doctor(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_nodes(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_vacate(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_cluster_init(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_cluster_invite(void *agent, const struct api_call *call, struct api_reply *reply);
int verb_cluster_join(void *agent, const struct api_call *call, struct api_reply *reply);
