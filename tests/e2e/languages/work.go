// SPDX-License-Identifier: LGPL-2.1-or-later
// Goroutines on all threads; each step leaves garbage for the collector. Without a pause between
// steps after SIGUSR1.
package main

import (
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func spin(x uint32, answer chan<- uint32) {
	for i := 0; i < 2000; i++ {
		x = x*1664525 + 1013904223
	}
	answer <- x
}

func main() {
	steps, _ := strconv.Atoi(os.Args[2])
	out, err := os.Create("out.txt")
	if err != nil {
		panic(err)
	}
	hurry := make(chan os.Signal, 1)
	signal.Notify(hurry, syscall.SIGUSR1)
	pause := 50 * time.Millisecond
	ring := make([][]uint32, 64)
	var sum uint32
	for step := 0; step < steps; step++ {
		answer := make(chan uint32)
		for worker := 0; worker < 2; worker++ {
			go spin(sum+uint32(step*2+worker), answer)
		}
		sum += <-answer + <-answer
		fresh := make([]uint32, 1000)
		for i := range fresh {
			fresh[i] = sum + uint32(i)
		}
		ring[step%64] = fresh
		if old := ring[step*7%64]; old != nil {
			sum ^= old[step%1000]
		}
		fmt.Fprintf(out, "%d %08x\n", step, sum)
		select {
		case <-hurry:
			pause = 0
		case <-time.After(pause):
		}
	}
}
