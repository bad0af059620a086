// SPDX-License-Identifier: LGPL-2.1-or-later
#include "agent/util/objects.h"

#include <string.h>

#include "agent/util/cleanup.h"

static const struct unsaved_object known[] = {
	{ "anon_inode:[io_uring]", "is an io_uring, which cannot be saved",
	  "switch io_uring off (UV_USE_IO_URING=0 for Node.js; many programs have an option for "
	  "another I/O engine)" },
	{ "anon_inode:[userfaultfd]", "is a userfaultfd, which cannot be saved",
	  "switch off the program's own page-fault handling" },
	{ "anon_inode:[perf_event]", "is a performance counter, which cannot be saved",
	  "run it without perf or its own profiler" },
	{ "anon_inode:[landlock-ruleset]", "is an open landlock ruleset, which cannot be saved",
	  "the program has to close it once it is in force" },
	{ "anon_inode:kvm-", "is part of a virtual machine",
	  "checkpoint the virtual machine by its own means" },
	{ "/secretmem", "is memory that nobody else may read", "run the program without it" },
	{ "/dmabuf:", "is memory of a device, which cannot be saved",
	  "run the program without it" },
};

const struct unsaved_object *unsaved_object(const char *link)
{
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!strncmp(link, known[i].link, strlen(known[i].link)))
			return &known[i];
	return NULL;
}
