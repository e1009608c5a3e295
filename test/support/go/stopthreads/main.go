// stopthreads stops single threads of a process and leaves the others running, as a thread that hangs would be: it attaches to them by
// ptrace(2) and never lets them go on. It prints "stopped" and waits until the process has died.
//
// Usage: stopthreads TID...
package main

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
)

const wall = 0x40000000

func main() {
	// A tracer is a thread.
	runtime.LockOSThread()
	left := map[int]bool{}
	for _, text := range os.Args[1:] {
		tid, err := strconv.Atoi(text)
		if err == nil {
			err = syscall.PtraceAttach(tid)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "stopthreads:", text, err)
			os.Exit(1)
		}
		left[tid] = true
	}
	for tid := range left {
		var status syscall.WaitStatus
		if _, err := syscall.Wait4(tid, &status, wall, nil); err != nil {
			fmt.Fprintln(os.Stderr, "stopthreads: wait for", tid, err)
			os.Exit(1)
		}
	}
	fmt.Println("stopped")
	for len(left) > 0 {
		var status syscall.WaitStatus
		tid, err := syscall.Wait4(-1, &status, wall, nil)
		if err != nil {
			return
		}
		if status.Exited() || status.Signaled() {
			delete(left, tid)
		}
	}
}
