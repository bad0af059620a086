# SPDX-License-Identifier: LGPL-2.1-or-later
import numpy
rng = numpy.random.default_rng(7)
grid = rng.random((1500, 1500))
walkers = rng.random((200000, 3))
total = 0.0
while True:
    grid[1:-1, 1:-1] += 0.1 * (grid[2:, 1:-1] + grid[:-2, 1:-1] + grid[1:-1, 2:]
                               + grid[1:-1, :-2] - 4 * grid[1:-1, 1:-1])
    walkers += rng.normal(scale=0.01, size=walkers.shape)
    total += grid.sum()
