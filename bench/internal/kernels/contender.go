package kernels

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Contender is one way to compute a case.
type Contender struct {
	Peer, Variant string  // Peer "": this library
	Error         float64 // relative L2 error of some rows; NaN: not checked

	// Time computes the case n times and returns the seconds of one.
	Time func(ctx context.Context, n int) (float64, error)
	// Alone says that a call of Time warms up by itself, is long, and takes no
	// notice of n.
	Alone bool
	// Note says why there is nothing to time. Time is nil then.
	Note string

	Close func()
}

// without is a contender that cannot take part.
func without(peer, variant string, why error) *Contender {
	return &Contender{Peer: peer, Variant: variant, Error: math.NaN(), Note: why.Error()}
}

// Peer is another library.
type Peer interface {
	// Contenders are its ways to compute c, with the keys and values of so many
	// layers in turn where it can. An error ends the run.
	Contenders(ctx context.Context, c Case, layers int) ([]*Contender, error)
	Close() error
}

// TooLongError says that a run would take longer than is allowed.
type TooLongError struct{ Estimate, Max time.Duration }

func (e *TooLongError) Error() string {
	return fmt.Sprintf("one run takes about %.3g s, above -max %v", e.Estimate.Seconds(), e.Max)
}

// fits is a *TooLongError if a run at so many FLOP a second and thread takes
// longer than most. A peer cannot be asked what it takes, nor stopped.
func fits(c Case, rate float64, most time.Duration) error {
	seconds := c.FLOP() / (rate * float64(max(c.Threads, 1)))
	if seconds <= most.Seconds() {
		return nil
	}
	return &TooLongError{time.Duration(min(seconds, 1e9) * 1e9), most}
}

// ours is the library's kernel with a set of leaf loops under a policy. What
// is wrong with it is its Note.
func (r *Runner) ours(p *problem, variant string, policy kernel.Policy) *Contender {
	c := &Contender{Variant: variant + "/" + policy.String(), Error: math.NaN()}
	if err := r.prepare(c, p, variant, policy); err != nil {
		c.Note, c.Time = err.Error(), nil
	}
	return c
}

// prepare runs the case once, over layer 0, and checks the result: a kernel
// that computes something else has no speed.
func (r *Runner) prepare(c *Contender, p *problem, variant string, policy kernel.Policy) error {
	use := func() error {
		if p.device != nil {
			return nil
		}
		return cpu.UseVariant(variant) // the contender before used another
	}
	b := r.computes(p.Threads)
	if err := use(); err != nil {
		return err
	}
	estimate, err := p.estimate(b, policy)
	if err != nil {
		return err
	}
	if estimate > r.Max {
		return &TooLongError{estimate, r.Max}
	}
	if err := r.reference(p); err != nil {
		return err
	}
	a, err := p.attention(b, policy)
	if err != nil {
		return err
	}
	c.Close = func() { a.Close() }
	if words := strings.Split(a.KernelName(), "/"); len(words) > 1 { // with a matrix unit, if it has one; a device's kernel
		c.Variant = words[1] + "/" + policy.String()
	}
	if err := p.clear(); err != nil {
		return err
	}
	run := p.runner(a)
	if p.Kind == Backward { // of what Run computes
		if err := p.forward(a)(); err != nil {
			return err
		}
	}
	if err := run(); err != nil {
		return err
	}
	if c.Error, err = p.check(policy); err != nil {
		return err
	}
	c.Time = func(ctx context.Context, n int) (float64, error) {
		if err := use(); err != nil {
			return 0, err
		}
		start := time.Now()
		for range n {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			if err := run(); err != nil {
				return 0, err
			}
		}
		if err := p.wait(); err != nil {
			return 0, err
		}
		return time.Since(start).Seconds() / float64(n), nil
	}
	return nil
}

// probeLength is the length at which a kernel is timed before the case itself.
func probeLength(k Kind) int {
	if k != Decode {
		return 256
	}
	return 2048
}

// estimate says how long the case would take, from the same kernel at a short
// length.
func (p *problem) estimate(b kernel.Backend, policy kernel.Policy) (time.Duration, error) {
	short := *p
	short.Length = min(p.Length, probeLength(p.Kind))
	tensors := []*tensor.View{&short.query, &short.out}
	if p.Kind == Backward {
		short.keys, short.values = slices.Clone(p.keys), slices.Clone(p.values)
		g := &short.grad
		tensors = append(tensors, &short.keys[0], &short.values[0], &g.lse, &g.out, &g.query, &g.key, &g.value)
	}
	for _, v := range tensors {
		v.Shape[0] = int64(short.Queries())
	}
	if p.cache != nil {
		var err error
		if short.id, err = p.cache.Fork(p.id); err != nil {
			return 0, err
		}
		defer p.cache.Free(short.id)
		if err := p.cache.Truncate(short.id, short.Length); err != nil {
			return 0, err
		}
	}
	a, err := short.attention(b, policy)
	if err != nil {
		return 0, err
	}
	defer a.Close()
	if p.Kind == Backward {
		if err := short.forward(a)(); err != nil {
			return 0, err
		}
	}
	run, best := short.runner(a), time.Duration(math.MaxInt64)
	for range 3 {
		start := time.Now()
		if err := run(); err != nil {
			return 0, err
		}
		if err := p.wait(); err != nil {
			return 0, err
		}
		best = min(best, time.Since(start))
	}
	return time.Duration(float64(best) * p.FLOP() / short.FLOP()), nil
}

// reference gives p the rows to check, those of the case before if it differs
// in its threads only.
func (r *Runner) reference(p *problem) error {
	if p.host != nil {
		p = p.host
	}
	if p.want != nil {
		return nil
	}
	same := p.Case
	same.Threads = 0
	if r.checked == nil || r.checked.Case != same {
		if err := p.reference(); err != nil {
			return err
		}
		r.checked = &problem{Case: same, want: p.want}
	}
	p.want = r.checked.want
	return nil
}
