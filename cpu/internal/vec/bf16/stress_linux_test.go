package bf16

import (
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// A thousand goroutines compute the same as one, while they move from thread to
// thread, garbage is collected and signals arrive. A tile that is lost, or left
// by another, shows in the bits.
func TestStateOfTilesIsKept(t *testing.T) {
	const goroutines, kinds = 1000, 8
	length := 3 * time.Second
	if testing.Short() {
		length = time.Second / 2
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0))))
	for _, tier := range Tiers()[1:] {
		t.Run(tier.String(), func(t *testing.T) {
			before, err := Use(tier)
			if err != nil {
				t.Fatal(err)
			}
			defer Use(before)
			var problems, want [kinds]*problem
			for i := range kinds {
				r := rand.New(rand.NewPCG(uint64(i), 9))
				problems[i] = newProblem(r, 32*(1+i), 64, 2+i, 1, [2]int{1, Exact}[i%2], i%3 == 0)
				want[i] = problems[i].clone()
				want[i].Attend(NewScratch(), want[i].strips)
			}
			var stop atomic.Bool
			var calls, wrong, signals atomic.Int64
			var wait sync.WaitGroup
			for n := range goroutines {
				wait.Go(func() {
					sc := NewScratch()
					for !stop.Load() {
						p := problems[n%kinds].clone()
						p.Attend(sc, p.strips)
						calls.Add(1)
						if w := want[n%kinds]; !slices.Equal(p.Out, w.Out) || !slices.Equal(p.L, w.L) {
							wrong.Add(1)
						}
						if n%7 == 0 {
							syscall.Getppid() // a system call, and perhaps another thread
						}
						runtime.Gosched()
					}
				})
			}
			if err := pprof.StartCPUProfile(io.Discard); err == nil { // a timer for each thread
				defer pprof.StopCPUProfile()
			}
			disturb(&stop, &wait, &signals)
			for start := time.Now(); time.Since(start) < length || calls.Load() < goroutines && time.Since(start) < time.Minute; {
				time.Sleep(length / 10)
			}
			stop.Store(true)
			wait.Wait()
			t.Logf("%d calls, %d signals", calls.Load(), signals.Load())
			if wrong.Load() > 0 {
				t.Fatalf("%d of %d calls were wrong", wrong.Load(), calls.Load())
			}
			if signals.Load() == 0 || calls.Load() < goroutines {
				t.Fatalf("%d signals and %d calls: nothing was tested", signals.Load(), calls.Load())
			}
		})
	}
}

// disturb collects garbage and sends signals to the threads of this process.
func disturb(stop *atomic.Bool, wait *sync.WaitGroup, signals *atomic.Int64) {
	caught := make(chan os.Signal, 1) // drops what nobody takes
	signal.Notify(caught, syscall.SIGUSR1)
	wait.Go(func() {
		for !stop.Load() {
			tasks, _ := os.ReadDir("/proc/self/task")
			for _, task := range tasks {
				tid, _ := strconv.Atoi(task.Name())
				if _, _, e := syscall.RawSyscall(syscall.SYS_TGKILL, uintptr(os.Getpid()), uintptr(tid), uintptr(syscall.SIGUSR1)); e == 0 {
					signals.Add(1)
				}
			}
			runtime.Gosched()
		}
		signal.Stop(caught)
	})
	wait.Go(func() {
		for !stop.Load() {
			runtime.GC()
		}
	})
}
