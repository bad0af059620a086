// SPDX-License-Identifier: LGPL-2.1-or-later
import java.util.*;
public class Churn {
    public static void main(String[] args) {
        Random dice = new Random(7);
        HashMap<Integer, String> map = new HashMap<>();
        long[] sums = new long[1 << 20];
        for (long i = 0;; i++) {
            int key = dice.nextInt(400000);
            map.put(key, "value " + i + " of " + key);
            sums[key] += i;
            if (i % 1000 == 0) {
                try { Thread.sleep(2); } catch (InterruptedException e) { return; }
            }
        }
    }
}
