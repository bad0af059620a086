// SPDX-License-Identifier: LGPL-2.1-or-later
// A pool of threads, a just-in-time compiler, and garbage for the collector.
import java.io.PrintWriter;
import java.util.List;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

public class Work {
    static int spin(int x) {
        for (int i = 0; i < 2000; i++)
            x = x * 1664525 + 1013904223;
        return x;
    }

    public static void main(String[] words) throws Exception {
        int steps = Integer.parseInt(words[1]), sum = 0;
        int[][] ring = new int[64][];
        ExecutorService pool = Executors.newFixedThreadPool(2);
        try (PrintWriter out = new PrintWriter("out.txt")) {
            for (int step = 0; step < steps; step++) {
                int first = sum + step * 2;
                List<Callable<Integer>> tasks = List.of(() -> spin(first), () -> spin(first + 1));
                for (var answer : pool.invokeAll(tasks))
                    sum += answer.get();
                int[] fresh = new int[1000];
                for (int i = 0; i < fresh.length; i++)
                    fresh[i] = sum + i;
                ring[step % 64] = fresh;
                int[] old = ring[step * 7 % 64];
                if (old != null)
                    sum ^= old[step % 1000];
                out.printf("%d %08x\n", step, sum);
                out.flush();
                Thread.sleep(50);
            }
        }
        pool.shutdown();
    }
}
