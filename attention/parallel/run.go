package parallel

import (
	"errors"
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Run computes attention over one sequence as a Schedule has it, rank after rank.
// args are those of attention over the whole sequence, contiguous, with Query,
// Key, Value, Out and LSE of all its tokens in order. The Config has no Mask, which
// the Schedule gives, and neither pages nor score modifications that depend on
// indices; Rotary takes the tokens' places in the sequence as positions.
func Run(b kernel.Backend, c attention.Config, s *Schedule, args *kernel.Args) error {
	if err := checkRun(&c, s, args); err != nil {
		return err
	}
	done := make([]bool, s.Tokens) // query tokens that a round of the rank has written
	for r := range s.Rounds {
		clear(done)
		for i := range s.Rounds[r] {
			if err := runRound(b, c, &s.Rounds[r][i], args, done); err != nil {
				return fmt.Errorf("parallel: %s: rank %d, round %d: %w", s.Name, r, i, err)
			}
		}
	}
	return nil
}

func checkRun(c *attention.Config, s *Schedule, args *kernel.Args) error {
	if s == nil || args == nil {
		return errors.New("parallel: Run without a Schedule or Args")
	}
	if len(c.Mask.Regions) > 0 || c.Mask.Kinds != 0 {
		return errors.New("parallel: Run with Config.Mask, want none: the Schedule has it")
	}
	if c.PageSize > 0 || !c.Coding.IsZero() {
		return errors.New("parallel: Run over pages, want contiguous keys")
	}
	if x := &c.Score; x.Slopes || x.RelBias || x.PrefixBias || x.SinkLogit || x.LogN != 0 {
		return errors.New("parallel: Run with slopes, biases, log-n or sink logits, which depend on the whole sequence; want none but SoftCap")
	}
	for _, v := range []struct {
		name  string
		view  *tensor.View
		rank  int
		heads int
	}{{"Query", &args.Query, 3, c.Heads}, {"Key", &args.Key, 3, c.KVHeads}, {"Value", &args.Value, 3, c.KVHeads}, {"Out", &args.Out, 3, c.Heads}, {"LSE", &args.LSE, 2, c.Heads}} {
		if v.view.Rank != v.rank || v.view.Shape[0] != int64(s.Tokens) || v.view.Shape[1] != int64(v.heads) {
			return fmt.Errorf("parallel: %s is %v, want the %d tokens of the Schedule and %d heads", v.name, v.view, s.Tokens, v.heads)
		}
		if err := v.view.Check(); err != nil {
			return fmt.Errorf("parallel: %s: %w", v.name, err)
		}
	}
	return nil
}

// of is the rows of v that a Span names.
func of(v tensor.View, x Span) tensor.View {
	v.Offset += int64(x.First) * v.Stride[0]
	v.Shape[0] = int64(x.Count)
	v.Stride[0] *= int64(x.Step)
	return v
}

func (x Span) positions() []int32 {
	p := make([]int32, x.Count)
	for i := range p {
		p[i] = int32(x.First + i*x.Step)
	}
	return p
}

// runRound computes a round and joins it with what its queries have so far.
func runRound(b kernel.Backend, c attention.Config, x *Round, args *kernel.Args, done []bool) (err error) {
	now := *args
	now.Query, now.Out, now.LSE = of(args.Query, x.Query), of(args.Out, x.Query), of(args.LSE, x.Query)
	now.Key, now.Value = of(args.Key, x.Key), of(args.Value, x.Key)
	if h := x.Heads; h[1] > 0 {
		group := c.Heads / c.KVHeads
		for _, v := range []*tensor.View{&now.Query, &now.Out, &now.LSE} {
			*v = v.Slice(1, int64(h[0]), int64(h[1]))
		}
		for _, v := range []*tensor.View{&now.Key, &now.Value} {
			*v = v.Slice(1, int64(h[0]/group), int64(h[1]/group))
		}
		c.Heads, c.KVHeads = h[1]-h[0], (h[1]-h[0])/group
	}
	c.Mask = x.Mask
	a, err := attention.New(b, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	step := attention.Step{QueryLens: []int{x.Query.Count}, KeyLens: []int{x.Key.Count}}
	if c.Rotary != nil {
		step.QueryPos, step.KeyPos, step.Length = x.Query.positions(), x.Key.positions(), int(args.Query.Shape[0])
	}
	if err := a.Plan(step); err != nil {
		return err
	}
	first := !done[x.Query.First]
	for i := range x.Query.Count {
		done[x.Query.First+i*x.Query.Step] = true
	}
	if first {
		return a.Run(&now)
	}
	merge := kernel.MergeArgs{OutA: now.Out, LSEA: now.LSE, Out: now.Out, LSE: now.LSE, Policy: c.Policy}
	for _, v := range []struct {
		to   *tensor.View
		from tensor.View
	}{{&merge.OutB, now.Out}, {&merge.LSEB, now.LSE}} {
		n := v.from.DType.Size()
		for _, d := range v.from.Shape[:v.from.Rank] {
			if d > 0 && n > math.MaxInt64/d {
				return fmt.Errorf("a round of %v is too large", &v.from)
			}
			n *= d
		}
		m, err := b.Alloc(n)
		if err != nil {
			return err
		}
		if free, ok := m.(interface{ Close() error }); ok {
			defer free.Close()
		}
		*v.to = tensor.Of(m, v.from.DType, v.from.Shape[:v.from.Rank]...)
	}
	now.Out, now.LSE = merge.OutB, merge.LSEB
	if err := a.Run(&now); err != nil {
		return err
	}
	return b.Merge(&merge)
}
