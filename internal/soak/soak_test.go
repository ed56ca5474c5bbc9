// Package soak holds one random run of everything that keeps keys and values: caches,
// policies, codecs, forks and drafts, indexes of prefixes, swaps, pages on other
// levels and growth, with faults, beside a plain model of what each sequence holds.
//
//	go test -v ./internal/soak -soak 1h -timeout 0 -seed 1
//
// Each episode has its own configuration, by its own seed: a run that fails prints
// what repeats its last one. Interrupt ends a run cleanly.
package soak

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"
)

var (
	length   = flag.Duration("soak", 0, "how long TestSoak runs; 0: some episodes")
	seedFlag = flag.Uint64("seed", 1, "seed of the first episode; each further one has the next")
	stepFlag = flag.Int("steps", 0, "run one episode of so many steps, as a failure says; 0: episodes of 1500")
)

// random is a source without an end.
type random struct{ *rand.Rand }

func (r random) below(n int) int {
	if n <= 1 {
		return 0
	}
	return r.IntN(n)
}

func newRandom(seed, stream uint64) random { return random{rand.New(rand.NewPCG(seed, stream))} }

// episode runs steps of a world from its beginning to its end. step is told of the
// number of each.
func episode(ctx context.Context, in source, dir string, steps int, total *counts, now *int) (err error) {
	var w *world
	defer func() { err = w.judge(recover()) }()
	defer os.RemoveAll(dir) // an hour has ten thousand of them
	w = newWorld(in, dir, 3, false)
	for i := 0; i < steps && ctx.Err() == nil; i++ {
		*now = i
		if in.below(4) == 0 {
			w.heads.step()
		} else {
			a := w.actors[in.below(len(w.actors))]
			a.step()
			a.readOne()
		}
		w.check(i%16 == 0)
	}
	w.check(true)
	w.close()
	w.counts.into(total)
	return nil
}

// together runs the actors of a world at the same time, and reads all when they have
// stopped.
func together(ctx context.Context, seed uint64, dir string, steps int, total *counts) (err error) {
	var w *world
	defer func() { err = w.judge(recover()) }()
	defer os.RemoveAll(dir)
	in := newRandom(seed, 2)
	w = newWorld(in, dir, 4, true)
	for i, a := range w.actors {
		a.in = newRandom(seed, uint64(10+i))
	}
	w.heads.in = newRandom(seed, 9)
	for round := 0; round < 5 && ctx.Err() == nil; round++ {
		errs := make([]error, len(w.actors)+1)
		var work sync.WaitGroup
		run := func(at int, step func()) {
			work.Go(func() {
				defer func() {
					if x := recover(); x != nil {
						errs[at] = fmt.Errorf("%v", x)
						if _, ok := x.(failure); !ok {
							errs[at] = fmt.Errorf("%v\n%s", x, debug.Stack())
						}
					}
				}()
				for i := 0; i < steps/5 && ctx.Err() == nil; i++ {
					step()
				}
			})
		}
		for i, a := range w.actors {
			run(i, func() {
				a.step()
				a.readOne()
				if a.in.below(8) == 0 {
					w.check(false)
				}
			})
		}
		run(len(w.actors), w.heads.step)
		work.Wait()
		if err := errors.Join(errs...); err != nil {
			panic(failure{err})
		}
		w.backend.disarm()
		w.check(true)
	}
	w.close()
	w.counts.into(total)
	return nil
}

// judge makes an error of what ended an episode.
func (w *world) judge(x any) error {
	if x == nil {
		return nil
	}
	f, ok := x.(failure)
	if !ok {
		f = failure{fmt.Errorf("panic: %v\n%s", x, debug.Stack())}
	}
	if w == nil {
		return f.error
	}
	log := []string{}
	for i, a := range w.actors {
		for _, s := range a.log[max(len(a.log)-15, 0):] {
			log = append(log, fmt.Sprintf("actor %d: %s", i, s))
		}
	}
	log = append(log, w.heads.log[max(len(w.heads.log)-15, 0):]...)
	return fmt.Errorf("%w\nwith %+v, faults %v; the last steps:\n%s", f.error, w.config, w.faults, strings.Join(log, "\n"))
}

func (c *counts) into(total *counts) {
	total.steps, total.sequences, total.refused, total.swaps = total.steps+c.steps, total.sequences+c.sequences, total.refused+c.refused, total.swaps+c.swaps
	total.imports, total.hits, total.policy = total.imports+c.imports, total.hits+c.hits, total.policy+c.policy
	total.evicted, total.faults, total.cancelled = total.evicted+c.evicted, total.faults+c.faults, total.cancelled+c.cancelled
	total.lowered += c.lowered
	total.restarts, total.attended, total.pages = total.restarts+c.restarts, total.attended+c.attended, max(total.pages, c.pages)
}

func (c *counts) String() string {
	return fmt.Sprintf("%d steps, %d sequences, %d pages at most, %d evicted, %d of them to the levels, %d found, %d imported, %d swaps, %d plans, %d refused, %d faults, %d cancelled, %d restarts, %d attended",
		c.steps, c.sequences, c.pages, c.evicted, c.lowered, c.hits, c.imports, c.swaps, c.policy, c.refused, c.faults, c.cancelled, c.restarts, c.attended)
}

// handles is the number of open files, or 0 where that is not known.
func handles() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

// settled waits for goroutines that have been told to end.
func settled(most int) int {
	n := runtime.NumGoroutine()
	for range 200 {
		if n <= most {
			break
		}
		time.Sleep(5 * time.Millisecond)
		n = runtime.NumGoroutine()
	}
	return n
}

// TestSoak: whatever is done in whatever order, the cache holds what the model holds,
// errors have types and change nothing, and nothing is left in the end.
func TestSoak(t *testing.T) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	episodes := 8 // without -soak
	if testing.Short() {
		episodes = 3
	}
	steps := 1500
	if *stepFlag > 0 {
		steps = *stepFlag
	}
	var total counts
	start, told := time.Now(), time.Now()
	goroutines, files := runtime.NumGoroutine(), 0
	seed := *seedFlag
	more := func() bool {
		if *length > 0 {
			return time.Since(start) < *length
		}
		return seed < *seedFlag+uint64(episodes)
	}
	for ; ctx.Err() == nil && more(); seed++ {
		dir, at := t.TempDir(), 0
		if err := episode(ctx, newRandom(seed, 1), dir, steps, &total, &at); err != nil {
			t.Fatalf("after %v: %v\n\nrepeat it with -seed %d -steps %d", time.Since(start).Round(time.Second), err, seed, at+1)
		}
		if *stepFlag > 0 {
			break
		}
		if seed%4 == 0 {
			if err := together(ctx, seed, t.TempDir(), steps/3, &total); err != nil {
				t.Fatalf("at the same time, -seed %d: %v", seed, err)
			}
		}
		if n := settled(goroutines); n > goroutines {
			stacks := make([]byte, 1<<16)
			t.Fatalf("seed %d: %d goroutines, %d before\n%s", seed, n, goroutines, stacks[:runtime.Stack(stacks, true)])
		}
		if n := handles(); files == 0 { // the first episode opens those of the runtime
			files = n
		} else if n > files {
			t.Fatalf("seed %d: %d open files, %d before", seed, n, files)
		}
		if time.Since(told) > 30*time.Second {
			told = time.Now()
			fmt.Printf("%v, seed %d: %v\n", time.Since(start).Round(time.Second), seed, &total)
		}
	}
	t.Logf("%d episodes from seed %d: %v", seed-*seedFlag, *seedFlag, &total)
	if *stepFlag == 0 && ctx.Err() == nil && seed-*seedFlag >= 8 {
		total.meant(t)
	}
}

// meant sees that a run met enough of everything.
func (c *counts) meant(t *testing.T) {
	for what, n := range map[string]int{"sequences": c.sequences, "pages found": c.hits, "pages imported": c.imports, "swaps": c.swaps, "plans": c.policy,
		"refusals": c.refused, "evictions": int(c.evicted), "pages evicted to the levels": int(c.lowered), "faults": int(c.faults), "cancels": int(c.cancelled), "restarts": int(c.restarts), "attention": int(c.attended)} {
		if n < 5 {
			t.Errorf("%d %s: too few to mean anything", n, what)
		}
	}
}

// TestTogether: the same by several goroutines, for the race detector.
func TestTogether(t *testing.T) {
	var total counts
	for seed := range uint64(3) {
		if err := together(context.Background(), seed, t.TempDir(), 150, &total); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
	t.Log(&total)
}

// input is a source that ends: it gives 0 then.
type input struct{ b []byte }

func (r *input) below(n int) int {
	if len(r.b) == 0 || n <= 1 {
		return 0
	}
	x := int(r.b[0])
	r.b = r.b[1:]
	if n > 256 && len(r.b) > 0 {
		x, r.b = x<<8|int(r.b[0]), r.b[1:]
	}
	return x % n
}

// FuzzSoak is TestSoak with the operations of the fuzzer.
func FuzzSoak(f *testing.F) {
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 6))
		b := make([]byte, 300*(seed+1))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		in, at := &input{b}, 0
		var total counts
		if err := episode(context.Background(), in, t.TempDir(), min(len(b)/8, 300), &total, &at); err != nil {
			t.Fatalf("step %d: %v", at, err)
		}
	})
}
