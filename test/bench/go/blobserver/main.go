// blobserver is the least registry that answers ranges of blobs: a directory of files served at /v2/<any repository>/blobs/<file name>, with a
// round trip before each answer and one rate for all answers, as on one link. It is written so that it is never the slow part of a bench.
package main

import (
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// link hands out the time at which a piece has passed, one piece after the other.
type link struct {
	mu     sync.Mutex
	freeAt time.Time
	rate   float64
}

// More than this ahead of the link, and a sender waits: pieces of different answers take turns. What a sender slept too long on a busy
// machine is made up for, up to the credit.
const (
	slack  = 2 * time.Millisecond
	credit = 20 * time.Millisecond
)

func (l *link) pass(bytes int) {
	l.mu.Lock()
	now := time.Now()
	if l.freeAt.Before(now.Add(-credit)) {
		l.freeAt = now.Add(-credit)
	}
	l.freeAt = l.freeAt.Add(time.Duration(float64(bytes) / l.rate * float64(time.Second)))
	wait := l.freeAt.Sub(now)
	l.mu.Unlock()
	if wait > slack {
		time.Sleep(wait)
	}
}

// pacedWriter hides ReadFrom, so that every piece is counted by the link.
type pacedWriter struct {
	http.ResponseWriter
	link *link
}

const piece = 16 * 1024

func (w pacedWriter) Write(bytes []byte) (int, error) {
	done := 0
	for done < len(bytes) {
		end := min(done+piece, len(bytes))
		w.link.pass(end - done)
		n, err := w.ResponseWriter.Write(bytes[done:end])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func min(a, b int) int {
	if a < b {
		return a
	}
	return b
}

func main() {
	directory := flag.String("directory", "", "where the blobs lie")
	roundTrip := flag.Duration("round-trip", 0, "pause before each answer")
	rate := flag.Float64("rate", 0, "bytes per second of all answers; 0: unlimited")
	flag.Parse()
	shared := &link{rate: *rate}
	var requests int64
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/requests" {
			fmt.Fprintln(w, atomic.LoadInt64(&requests))
			return
		}
		time.Sleep(*roundTrip)
		_, name, found := strings.Cut(r.URL.Path, "/blobs/")
		if !found {
			w.WriteHeader(http.StatusOK)
			return
		}
		atomic.AddInt64(&requests, 1)
		file, err := os.Open(filepath.Join(*directory, filepath.Base(name)))
		if err != nil {
			http.Error(w, "unknown blob", http.StatusNotFound)
			return
		}
		defer file.Close()
		w.Header().Set("Content-Type", "application/octet-stream")
		if *rate > 0 {
			w = pacedWriter{w, shared}
		}
		http.ServeContent(w, r, "", time.Time{}, file)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(listener.Addr())
	fmt.Fprintln(os.Stderr, http.Serve(listener, handler))
	os.Exit(1)
}
