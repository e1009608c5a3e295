// verifyread reads the files of a tree over and over and checks every one against its known digest. One process reads in one way: read(2),
// a memory map, O_DIRECT, or by running a program of the tree. It ends when its standard input is closed, and prints what it saw.
//
// Output: a JSON object a line: {"pass":N} after each pass over all files, {"summary":{…}} at the end. Each line on its standard input is
// answered with {"mark":{"stallMs":N,"at":"…"}}: the longest step since the last such line, the one under way included.
package main

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"sync"
	"syscall"
	"time"
)

// Bytes of one timed step.
const chunk = 64 * 1024

// Files up to this size are read in random order of their chunks; larger ones from the front.
const shuffleLimit = 16 * 1024 * 1024

// Kept of each list; the rest is counted.
const keep = 20

type file struct {
	Path   string `json:"path"`
	Size   int64  `json:"size"`
	Sha256 string `json:"sha256"`
}

type plan struct {
	Root  string `json:"root"`
	Mode  string `json:"mode"`
	Seed  int64  `json:"seed"`
	Files []file `json:"files"`
	// Pause after each file, so that readers of cached bytes leave the processors to what is tested.
	PauseMs int `json:"pauseMs"`
	// Mode exec: a program of the tree (run with the tree as its root), and what it must print.
	Exec struct {
		Argv   []string `json:"argv"`
		Stdout string   `json:"stdout"`
	} `json:"exec"`
}

type summary struct {
	Mode           string   `json:"mode"`
	Passes         int      `json:"passes"`
	Files          int64    `json:"files"`
	Bytes          int64    `json:"bytes"`
	ErrorCount     int      `json:"errorCount"`
	Errors         []string `json:"errors"`
	WrongCount     int      `json:"wrongCount"`
	Wrong          []string `json:"wrong"`
	LongestStallMs float64  `json:"longestStallMs"`
	LongestStallAt string   `json:"longestStallAt"`
	ElapsedMs      float64  `json:"elapsedMs"`
}

type mark struct {
	StallMs float64 `json:"stallMs"`
	At      string  `json:"at"`
}

type reader struct {
	plan    plan
	random  *rand.Rand
	direct  []byte
	seen    summary
	stopped chan struct{}
	// Guards the step that is under way, so that a read that never returns shows in the summary.
	mutex       sync.Mutex
	stepStart   time.Time
	stepAt      string
	marked      mark
	output      *json.Encoder
	outputMutex sync.Mutex
}

func main() {
	planPath := flag.String("plan", "", "JSON file: root, mode, seed, files")
	flag.Parse()
	text, err := os.ReadFile(*planPath)
	if err != nil {
		fatal(err)
	}
	r := &reader{stopped: make(chan struct{}), output: json.NewEncoder(os.Stdout)}
	if err := json.Unmarshal(text, &r.plan); err != nil {
		fatal(err)
	}
	r.random = rand.New(rand.NewSource(r.plan.Seed))
	r.seen.Mode = r.plan.Mode
	r.seen.Errors = []string{}
	r.seen.Wrong = []string{}
	if r.direct, err = syscall.Mmap(-1, 0, chunk, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE); err != nil {
		fatal(err)
	}
	go func() {
		for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
			r.mark()
		}
		close(r.stopped)
	}()
	started := time.Now()
	done := make(chan struct{})
	go func() {
		r.loop()
		close(done)
	}()
	<-r.stopped
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		// The read under way does not come back: that is a stall to be told of, not to be waited for.
		r.mutex.Lock()
		r.note(time.Since(r.stepStart), r.stepAt)
		r.seen.ErrorCount++
		r.seen.Errors = append(r.seen.Errors, r.stepAt+": did not return within 30 s of the end")
	}
	r.seen.ElapsedMs = float64(time.Since(started).Microseconds()) / 1000
	r.print(map[string]any{"summary": r.seen})
}

// print writes one line; the loop and the answers to marks take turns.
func (r *reader) print(message any) {
	r.outputMutex.Lock()
	defer r.outputMutex.Unlock()
	if err := r.output.Encode(message); err != nil {
		fatal(err)
	}
}

// mark tells the longest step since the last mark, and begins anew.
func (r *reader) mark() {
	r.mutex.Lock()
	if r.stepAt != "" {
		r.note(time.Since(r.stepStart), r.stepAt)
	}
	told := r.marked
	r.marked = mark{}
	r.mutex.Unlock()
	r.print(map[string]any{"mark": told})
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "verifyread:", err)
	os.Exit(2)
}

func (r *reader) loop() {
	for {
		order := r.random.Perm(len(r.plan.Files))
		if r.plan.Mode == "exec" {
			order = []int{0}
		}
		for _, index := range order {
			select {
			case <-r.stopped:
				return
			default:
			}
			r.one(index)
			time.Sleep(time.Duration(r.plan.PauseMs) * time.Millisecond)
		}
		r.seen.Passes++
		r.print(map[string]any{"pass": r.seen.Passes})
	}
}

func (r *reader) one(index int) {
	if r.plan.Mode == "exec" {
		r.run()
		return
	}
	f := r.plan.Files[index]
	var got string
	var err error
	switch r.plan.Mode {
	case "read":
		got, err = r.readFile(f, 0)
	case "direct":
		got, err = r.readFile(f, syscall.O_DIRECT)
	case "mmap":
		got, err = r.mapFile(f)
	default:
		fatal(fmt.Errorf("unknown mode %q", r.plan.Mode))
	}
	r.judge(f.Path, f.Size, got, f.Sha256, err)
}

func (r *reader) judge(name string, size int64, got, want string, err error) {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	r.seen.Files++
	r.seen.Bytes += size
	if err != nil {
		r.seen.ErrorCount++
		if len(r.seen.Errors) < keep {
			r.seen.Errors = append(r.seen.Errors, name+": "+err.Error())
		}
	} else if got != want {
		r.seen.WrongCount++
		if len(r.seen.Wrong) < keep {
			r.seen.Wrong = append(r.seen.Wrong, fmt.Sprintf("%s: %s, expected %s", name, got, want))
		}
	}
}

// step times one thing that may wait for the data plane.
func (r *reader) step(at string, do func() error) error {
	r.mutex.Lock()
	r.stepStart, r.stepAt = time.Now(), at
	start := r.stepStart
	r.mutex.Unlock()
	err := do()
	r.mutex.Lock()
	r.note(time.Since(start), at)
	r.stepAt = ""
	r.mutex.Unlock()
	return err
}

func (r *reader) note(took time.Duration, at string) {
	if ms := float64(took.Microseconds()) / 1000; ms > r.seen.LongestStallMs {
		r.seen.LongestStallMs, r.seen.LongestStallAt = ms, at
	}
	if ms := float64(took.Microseconds()) / 1000; ms > r.marked.StallMs {
		r.marked = mark{StallMs: ms, At: at}
	}
}

func (r *reader) open(f file, flags int) (*os.File, error) {
	var opened *os.File
	err := r.step("open "+f.Path, func() (err error) {
		opened, err = os.OpenFile(filepath.Join(r.plan.Root, f.Path), os.O_RDONLY|flags, 0)
		return err
	})
	return opened, err
}

func (r *reader) readFile(f file, flags int) (string, error) {
	opened, err := r.open(f, flags)
	if err != nil {
		return "", err
	}
	defer opened.Close()
	count := int((f.Size + chunk - 1) / chunk)
	if f.Size > shuffleLimit {
		hash := sha256.New()
		for i := 0; i < count; i++ {
			n, err := r.readChunk(opened, f, int64(i)*chunk)
			if err != nil {
				return "", err
			}
			hash.Write(r.direct[:n])
		}
		return hex.EncodeToString(hash.Sum(nil)), nil
	}
	whole := make([]byte, f.Size)
	for _, i := range r.random.Perm(count) {
		offset := int64(i) * chunk
		n, err := r.readChunk(opened, f, offset)
		if err != nil {
			return "", err
		}
		copy(whole[offset:], r.direct[:n])
	}
	sum := sha256.Sum256(whole)
	return hex.EncodeToString(sum[:]), nil
}

// readChunk fills r.direct from an aligned offset; a short answer before the end of the file is an error.
func (r *reader) readChunk(opened *os.File, f file, offset int64) (int, error) {
	want := f.Size - offset
	if want > chunk {
		want = chunk
	}
	got := 0
	err := r.step(fmt.Sprintf("%s at %d", f.Path, offset), func() error {
		n, err := syscall.Pread(int(opened.Fd()), r.direct, offset)
		got = n
		return err
	})
	if err != nil {
		return 0, err
	}
	if int64(got) < want {
		return 0, fmt.Errorf("read %d bytes at %d, expected %d", got, offset, want)
	}
	return int(want), nil
}

func (r *reader) mapFile(f file) (sum string, err error) {
	opened, err := r.open(f, 0)
	if err != nil {
		return "", err
	}
	defer opened.Close()
	whole := make([]byte, f.Size)
	if f.Size == 0 {
		sum := sha256.Sum256(whole)
		return hex.EncodeToString(sum[:]), nil
	}
	mapped, err := syscall.Mmap(int(opened.Fd()), 0, int(f.Size), syscall.PROT_READ, syscall.MAP_SHARED)
	if err != nil {
		return "", err
	}
	defer func() {
		if failed := syscall.Munmap(mapped); failed != nil && err == nil {
			err = failed
		}
	}()
	// A page that cannot be read raises SIGBUS, which becomes a panic and here an error.
	debug.SetPanicOnFault(true)
	defer func() {
		if fault := recover(); fault != nil {
			err = fmt.Errorf("page fault: %v", fault)
		}
	}()
	count := int((f.Size + chunk - 1) / chunk)
	for _, i := range r.random.Perm(count) {
		offset := int64(i) * chunk
		end := offset + chunk
		if end > f.Size {
			end = f.Size
		}
		// The copy cannot fail but by the fault that is recovered above.
		_ = r.step(fmt.Sprintf("%s map at %d", f.Path, offset), func() error {
			copy(whole[offset:end], mapped[offset:end])
			return nil
		})
	}
	digest := sha256.Sum256(whole)
	return hex.EncodeToString(digest[:]), nil
}

func (r *reader) run() {
	argv := r.plan.Exec.Argv
	command := exec.Command(argv[0], argv[1:]...)
	command.SysProcAttr = &syscall.SysProcAttr{Chroot: r.plan.Root}
	command.Dir = "/"
	command.Env = []string{"PATH=/usr/local/bin:/usr/bin:/bin", "LC_ALL=C"}
	var output []byte
	err := r.step("exec "+argv[0], func() (err error) {
		output, err = command.CombinedOutput()
		return err
	})
	if err != nil {
		err = fmt.Errorf("%w: %.300s", err, output)
	}
	r.judge(argv[0], int64(len(output)), string(output), r.plan.Exec.Stdout, err)
}
