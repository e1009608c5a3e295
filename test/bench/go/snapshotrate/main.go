// snapshotrate measures a snapshotter through containerd's own client: Prepare, Mounts, Stat and Remove, each by so many callers at once. It
// prints one JSON object: milliseconds of every call, by operation and callers, and the wall time of each operation's run.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/namespaces"
	"github.com/containerd/containerd/snapshots"
)

type series struct {
	Operation string    `json:"operation"`
	Callers   int       `json:"callers"`
	WallMs    float64   `json:"wallMs"`
	CallsMs   []float64 `json:"callsMs"`
}

func main() {
	address := flag.String("address", "", "containerd's socket")
	snapshotter := flag.String("snapshotter", "overlayfs", "snapshotter to measure")
	parent := flag.String("parent", "", "committed snapshot to prepare on; empty: one is made")
	count := flag.Int("count", 200, "snapshots a run")
	flag.Parse()
	ctx := namespaces.WithNamespace(context.Background(), "default")
	client, err := containerd.New(*address)
	check(err)
	defer client.Close()
	// Without a lease containerd's collector takes what no image names.
	ctx, release, err := client.WithLease(ctx)
	check(err)
	defer release(context.Background())
	service := client.SnapshotService(*snapshotter)
	made := ""
	if *parent == "" {
		made = "bench-base"
		_, err := service.Prepare(ctx, "bench-base-active", "")
		check(err)
		check(service.Commit(ctx, made, "bench-base-active"))
		*parent = made
	}
	var all []series
	for _, callers := range []int{1, 8} {
		key := func(i int) string { return fmt.Sprintf("bench-%d-%d", callers, i) }
		measure := func(operation string, call func(i int) error) {
			all = append(all, run(operation, callers, *count, call))
		}
		measure("Prepare", func(i int) error { _, err := service.Prepare(ctx, key(i), *parent); return err })
		measure("Mounts", func(i int) error { _, err := service.Mounts(ctx, key(i)); return err })
		measure("Stat", func(i int) error { _, err := service.Stat(ctx, key(i)); return err })
		measure("Remove", func(i int) error { return service.Remove(ctx, key(i)) })
	}
	if made != "" {
		check(service.Remove(ctx, made))
	}
	if cleaner, ok := service.(snapshots.Cleaner); ok {
		if err := cleaner.Cleanup(ctx); err != nil {
			fmt.Fprintln(os.Stderr, "snapshotrate: cleanup:", err)
		}
	}
	check(json.NewEncoder(os.Stdout).Encode(all))
}

func run(operation string, callers, count int, call func(i int) error) series {
	calls := make([]float64, count)
	errs := make([]error, callers)
	var group sync.WaitGroup
	started := time.Now()
	for caller := 0; caller < callers; caller++ {
		group.Add(1)
		go func(caller int) {
			defer group.Done()
			for i := caller; i < count; i += callers {
				at := time.Now()
				if err := call(i); err != nil {
					errs[caller] = err
					return
				}
				calls[i] = float64(time.Since(at).Microseconds()) / 1000
			}
		}(caller)
	}
	group.Wait()
	for _, err := range errs {
		check(err)
	}
	return series{operation, callers, float64(time.Since(started).Microseconds()) / 1000, calls}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "snapshotrate:", err)
		os.Exit(1)
	}
}
