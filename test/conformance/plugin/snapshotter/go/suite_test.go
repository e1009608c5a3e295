// Runs containerd's own snapshotter test suite against our sidecar, through containerd's own proxy client, in one of two ways:
//   - OBD_SIDECAR is a command (program and arguments, separated by newlines): each case starts it with --config FILE appended and
//     dials its socket.
//   - OBD_CONTAINERD is the socket of a containerd that has our sidecar as proxy plugin "overlaybd": cases go through that daemon,
//     one after the other, and each is emptied after itself.
package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/pkg/dialer"
	_ "github.com/containerd/containerd/pkg/testutil"
	"github.com/containerd/containerd/snapshots"
	"github.com/containerd/containerd/snapshots/proxy"
	"github.com/containerd/containerd/snapshots/testsuite"
	"google.golang.org/grpc"
)

const startDeadline = 60 * time.Second

func waitForSocket(path string, ended <-chan error) error {
	for deadline := time.Now().Add(startDeadline); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		select {
		case err := <-ended:
			return fmt.Errorf("the sidecar ended while starting: %v", err)
		default:
		}
		if conn, err := net.Dial("unix", path); err == nil {
			return conn.Close()
		}
	}
	return errors.New("the sidecar does not accept connections")
}

func newSnapshotter(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
	run := filepath.Join(filepath.Dir(root), "run")
	config := filepath.Join(filepath.Dir(root), "config.toml")
	text := fmt.Sprintf("[paths]\nroot = %q\nrun = %q\n", root, run)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, nil, err
	}
	command := strings.Split(os.Getenv("OBD_SIDECAR"), "\n")
	var log bytes.Buffer
	sidecar := exec.Command(command[0], append(command[1:], "--config", config)...)
	sidecar.Stderr = &log
	sidecar.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := sidecar.Start(); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- sidecar.Wait() }()
	socket := filepath.Join(run, "snapshotter.sock")
	if err := waitForSocket(socket, ended); err != nil {
		_ = sidecar.Process.Kill()
		return nil, nil, fmt.Errorf("%w: %s", err, log.String())
	}
	conn, err := grpc.Dial(dialer.DialAddress(socket),
		grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		_ = sidecar.Process.Kill()
		return nil, nil, err
	}
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "overlaybd")
	cleanup := func() error {
		if err := sn.(snapshots.Cleaner).Cleanup(ctx); err != nil {
			return fmt.Errorf("cleanup: %w", err)
		}
		_ = conn.Close()
		_ = sidecar.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("the sidecar ended with %v: %s", err, log.String())
			}
			return nil
		case <-time.After(20 * time.Second):
			_ = sidecar.Process.Kill()
			return fmt.Errorf("the sidecar does not end on SIGTERM: %s", log.String())
		}
	}
	return sn, cleanup, nil
}

// removeAll takes every snapshot away, children before parents.
func removeAll(ctx context.Context, sn snapshots.Snapshotter) error {
	for {
		var names []string
		if err := sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
			names = append(names, info.Name)
			return nil
		}); err != nil {
			return err
		}
		if len(names) == 0 {
			return nil
		}
		removed := 0
		var last error
		for _, name := range names {
			if last = sn.Remove(ctx, name); last == nil {
				removed++
			}
		}
		if removed == 0 {
			return fmt.Errorf("%d snapshots cannot be removed: %w", len(names), last)
		}
	}
}

func throughContainerd(ctx context.Context, _ string) (snapshots.Snapshotter, func() error, error) {
	conn, err := grpc.Dial(dialer.DialAddress(os.Getenv("OBD_CONTAINERD")),
		grpc.WithInsecure(), grpc.WithContextDialer(dialer.ContextDialer))
	if err != nil {
		return nil, nil, err
	}
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "overlaybd")
	return sn, func() error {
		defer conn.Close()
		return removeAll(ctx, sn)
	}, nil
}

func TestSuite(t *testing.T) {
	switch {
	case os.Getenv("OBD_CONTAINERD") != "":
		testsuite.SnapshotterSuite(t, "overlaybd", throughContainerd)
	case os.Getenv("OBD_SIDECAR") != "":
		testsuite.SnapshotterSuite(t, "overlaybd", newSnapshotter)
	default:
		t.Fatal("neither OBD_SIDECAR nor OBD_CONTAINERD is set")
	}
}
