/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * The server with limits of the caller's choice; tests need small ones.
 */
#pragma once

#include "agent/api/api.h"

struct api_limits {
	unsigned int connections;   /* in all */
	unsigned int per_user;	    /* served for one user; further ones are told so */
	unsigned int per_user_hard; /* kept open for one user; further ones are just closed */
	unsigned int idle_s;	    /* silence of a client until its connection is closed */
};

int api_start_limited(const char *socket_path, const struct api_route *routes, void *ctx,
		      const struct api_limits *limits, struct api **ret_api) _must_check_;
