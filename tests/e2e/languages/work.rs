// SPDX-License-Identifier: LGPL-2.1-or-later
// Threads that are born and end in each step, and channels between them.
use std::io::Write;
use std::sync::mpsc;
use std::{env, fs, thread, time};

fn spin(mut x: u32) -> u32 {
    for _ in 0..2000 {
        x = x.wrapping_mul(1664525).wrapping_add(1013904223);
    }
    x
}

fn main() {
    let steps: usize = env::args().nth(2).unwrap().parse().unwrap();
    let mut out = fs::File::create("out.txt").unwrap();
    let mut ring: Vec<Vec<u32>> = vec![Vec::new(); 64];
    let mut sum: u32 = 0;
    for step in 0..steps {
        let (answer, answers) = mpsc::channel();
        for worker in 0..2 {
            let answer = answer.clone();
            let x = sum.wrapping_add((step * 2 + worker) as u32);
            thread::spawn(move || answer.send(spin(x)).unwrap());
        }
        drop(answer);
        sum = answers.iter().fold(sum, |all, x| all.wrapping_add(x));
        ring[step % 64] = (0..1000u32).map(|i| sum.wrapping_add(i)).collect();
        if let Some(old) = ring[step * 7 % 64].get(step % 1000) {
            sum ^= old;
        }
        writeln!(out, "{} {:08x}", step, sum).unwrap();
        thread::sleep(time::Duration::from_millis(50));
    }
}
