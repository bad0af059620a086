/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * Who else has a pipe: asked of /proc before a job is stopped, when a pipe has an end outside.
 */
#pragma once

#include "agent/native/files_internal.h"

/* -EOPNOTSUPP, naming the holder, if a process outside of the job has the writing end (or else the
 * reading one) of this pipe; 0 if nobody is found. */
int pipe_check_holders(struct native_files *f, const struct native_open *o, bool writing);
