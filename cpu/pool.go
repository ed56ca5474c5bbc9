package cpu

import (
	"runtime"
	"sync"
	"sync/atomic"
)

// pool is a fixed set of goroutines that share the items of jobs. Several jobs
// may run at once.
type pool struct {
	workers int
	jobs    chan *job
	close   sync.Once
}

// A job is n items, each computed once by some worker.
type job struct {
	work worker
	n    int64
	next atomic.Int64
	done sync.WaitGroup
}

// worker computes one item. slot is below the pool's number of workers, and
// no two calls of a job run at once with the same slot.
type worker interface{ item(slot int, i int64) }

func newPool(workers int) *pool {
	if workers < 1 {
		workers = runtime.GOMAXPROCS(0)
	}
	p := &pool{workers: workers, jobs: make(chan *job, workers)}
	for slot := 1; slot < workers; slot++ {
		go func() {
			for j := range p.jobs {
				j.drain(slot)
				j.done.Done()
			}
		}()
	}
	return p
}

// do runs the items of j and returns when all are computed. The caller is
// worker 0, so a pool of one has no goroutine.
func (p *pool) do(j *job, w worker, n int64) {
	j.work, j.n = w, n
	j.next.Store(0)
	helpers := int(min(int64(p.workers), n)) - 1
	for range helpers {
		j.done.Add(1)
		p.jobs <- j
	}
	j.drain(0)
	j.done.Wait()
}

func (j *job) drain(slot int) {
	for i := j.next.Add(1) - 1; i < j.n; i = j.next.Add(1) - 1 {
		j.work.item(slot, i)
	}
}
