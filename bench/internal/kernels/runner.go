package kernels

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Runner measures cases one after another. It serves one goroutine.
type Runner struct {
	Device   Device   // what computes; nil: package cpu
	Variants []string // of package cpu; one for a Device
	Policies []kernel.Policy
	Peers    []Peer
	Time     time.Duration // of measuring, for each contender of a case
	Max      time.Duration // of one run; what takes longer is left out
	Memory   int64         // bytes that tensors may take

	backends map[int]*cpu.Backend // by workers
	arena    *arena
	query    []byte   // queries and outputs
	checked  *problem // the case whose reference was computed last
}

// Row is what came of a contender of a case.
type Row struct {
	Case
	Backend       string
	Variant, Peer string
	Seconds       float64 // median; 0: see Note
	Error         float64 // relative L2 error; NaN: not checked
	Note          string
}

// Close stops the backends and the peers.
func (r *Runner) Close() error {
	for _, b := range r.backends {
		b.Close()
	}
	var err error
	for _, p := range r.Peers {
		err = errors.Join(err, p.Close())
	}
	r.backends, r.arena, r.query = nil, nil, nil
	return err
}

// Prepare takes memory for the largest of cases, as far as Memory goes.
func (r *Runner) Prepare(cases []Case) error {
	var kv, query int64
	for _, c := range cases {
		if n := c.layers(r.Memory); c.need(n) <= r.Memory {
			kv, query = max(kv, c.storage(n)), max(query, c.queryBytes())
		}
	}
	var err error
	if r.arena, err = newArena(r.backend(1), kv); err != nil {
		return fmt.Errorf("kernels: %w", err)
	}
	buffer, err := r.backend(1).Alloc(2 * query)
	if err != nil {
		return fmt.Errorf("kernels: %w", err)
	}
	v := tensor.Of(buffer, tensor.F32)
	r.query = v.Bytes()
	return nil
}

// backend opens the backend, once for each number of workers.
func (r *Runner) backend(workers int) *cpu.Backend {
	if r.backends == nil {
		r.backends = map[int]*cpu.Backend{}
	}
	if r.backends[workers] == nil {
		r.backends[workers] = cpu.New(cpu.Options{Workers: workers})
	}
	return r.backends[workers]
}

// Run measures a case, whose memory Prepare has taken. The error is ctx's, or
// that of a peer that broke down; what cannot be measured is a Note.
func (r *Runner) Run(ctx context.Context, c Case) ([]Row, error) {
	layers := c.layers(r.Memory)
	if need := c.need(layers); need > r.Memory {
		return []Row{{Case: c, Backend: r.Backend().Name(), Note: fmt.Sprintf("it takes %.1f GiB of memory, above %.1f GiB", gib(need), gib(r.Memory))}}, nil
	}
	p, err := newProblem(c, layers, r.arena, r.query, r.backend(c.Threads))
	if err != nil {
		return nil, err
	}
	var list []*Contender
	if r.Device != nil {
		twin, free, err := p.twin(r.Device)
		if err != nil {
			return []Row{{Case: c, Backend: r.Device.Name(), Note: err.Error()}}, nil
		}
		defer free()
		p = twin
	}
	defer func() {
		for _, c := range list {
			if c.Close != nil {
				c.Close()
			}
		}
	}()
	defer cpu.UseVariant(cpu.Variant())
	for _, variant := range r.Variants {
		for _, policy := range r.Policies {
			list = append(list, r.ours(p, variant, policy))
		}
	}
	for _, peer := range r.Peers {
		more, err := peer.Contenders(ctx, c, layers)
		list = append(list, more...)
		if err != nil {
			return nil, err
		}
	}
	medians, err := Alternate(ctx, list, r.Time)
	if err != nil {
		return nil, err
	}
	var rows []Row
	for i, contender := range list {
		rows = append(rows, Row{c, r.Backend().Name(), contender.Variant, contender.Peer, medians[i], contender.Error, contender.Note})
	}
	return rows, nil
}

// Load makes the tensors of a case, up to two gigabytes, and returns what
// computes it once, a layer after another. It is for benchmarks.
func Load(b *cpu.Backend, c Case, policy kernel.Policy) (run func() error, err error) {
	r := Runner{Memory: 2 << 30, backends: map[int]*cpu.Backend{1: b, c.Threads: b}}
	if err := r.Prepare([]Case{c}); err != nil {
		return nil, err
	}
	p, err := newProblem(c, c.layers(r.Memory), r.arena, r.query, b)
	if err != nil {
		return nil, err
	}
	a, err := p.attention(b, policy)
	if err != nil {
		return nil, err
	}
	return p.runner(a), nil
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

const (
	leastSample = 2e-3 // seconds: long beside a clock's grain
	mostRounds  = 15
	leastRounds = 3
)

// Alternate times the contenders in turn, in up to 15 rounds that take each of
// them about so long together, and in 3 at least, and returns the median of
// each, in seconds. A contender that fails gets a Note and 0.
func Alternate(ctx context.Context, list []*Contender, each time.Duration) ([]float64, error) {
	samples, reps := make([][]float64, len(list)), make([]int, len(list))
	spent := make([]time.Duration, len(list))
	// sample times one contender; the error is ctx's.
	sample := func(i, n int) (float64, error) {
		start := time.Now()
		t, err := list[i].Time(ctx, n)
		spent[i] += time.Since(start)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if err != nil {
			list[i].Note, list[i].Time, samples[i] = err.Error(), nil, nil
		}
		return t, nil
	}
	for i, c := range list {
		if reps[i] = 1; c.Time == nil || c.Alone {
			continue
		}
		t, err := sample(i, 1) // to warm up
		if err != nil {
			return nil, err
		}
		reps[i] = max(1, int(min(max(leastSample, each.Seconds()/mostRounds)/max(t, 1e-9), 1e6)))
		spent[i] = 0
	}
	for round := range mostRounds {
		for i, c := range list {
			if c.Time == nil || round >= leastRounds && spent[i] >= each {
				continue
			}
			t, err := sample(i, reps[i])
			if err != nil {
				return nil, err
			}
			if c.Time != nil {
				samples[i] = append(samples[i], t)
			}
		}
	}
	medians := make([]float64, len(list))
	for i, s := range samples {
		medians[i] = median(s)
	}
	return medians, nil
}

func median(s []float64) float64 {
	if len(s) == 0 {
		return 0
	}
	s = slices.Sorted(slices.Values(s))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// Backend is one of those that are measured.
func (r *Runner) Backend() kernel.Backend { return r.computes(1) }

// computes is what computes with so many workers.
func (r *Runner) computes(workers int) kernel.Backend {
	if r.Device != nil {
		return r.Device
	}
	return r.backend(workers)
}
