package attention_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// FuzzAttention reads a Config and a Step from bytes, valid or not. Nothing may
// panic, and what is accepted must agree with the reference.
func FuzzAttention(f *testing.F) {
	r := rand.New(rand.NewPCG(3, 1))
	for range 200 {
		b := make([]byte, 40+r.IntN(80))
		for i := range b {
			if r.IntN(3) > 0 { // zero chooses what is usual
				b[i] = byte(r.Uint32())
			}
		}
		f.Add(b)
	}
	b := backend(f, 2)
	f.Fuzz(func(t *testing.T, data []byte) {
		g := &bytes{data}
		in := input{config: g.config(), step: g.step()}
		if !fillable(in) {
			a, err := attention.New(b, in.config)
			if err == nil {
				err = errors.Join(a.Plan(in.step), a.Close())
			}
			if err == nil && !known(in.step.QueryLens) {
				t.Fatalf("accepted queries %v, keys %v", in.step.QueryLens, in.step.KeyLens)
			}
			return
		}
		own := in.step
		if own.KeyLens == nil {
			in.step.KeyLens = own.QueryLens
		}
		in.fill(rand.New(rand.NewPCG(4, uint64(len(data)))))
		in.step.KeyLens = own.KeyLens
		if in.config.PageSize > 0 {
			in.step.KeyLens = own.QueryLens
			if own.KeyLens != nil {
				in.step.KeyLens = own.KeyLens
			}
		}
		got, err := try(b, in)
		if err != nil {
			return
		}
		if in.step.KeyLens == nil {
			in.step.KeyLens = own.QueryLens
		}
		if comparable(t, in) {
			newReference(t, in).check(t, got, 1e-4)
		}
	})
}

// fillable reports whether tensors can be made for an input at all.
func fillable(in input) bool {
	c := &in.config
	return c.Heads > 0 && c.KVHeads > 0 && c.Heads%c.KVHeads == 0 && c.HeadDim > 0 && c.HeadDim <= kernel.MaxHeadDim &&
		c.ValueDim >= 0 && c.ValueDim <= kernel.MaxHeadDim && (c.DType == 0 || c.DType.Valid()) && (c.KVDType == 0 || c.KVDType.Valid()) &&
		c.PageSize >= 0 && known(in.step.QueryLens) && known(in.step.KeyLens) &&
		(in.step.KeyLens == nil || len(in.step.KeyLens) == len(in.step.QueryLens))
}

func known(lens []int) bool {
	for _, n := range lens {
		if n < 0 || n > 1000 {
			return false
		}
	}
	return true
}

// comparable reports whether the reference's tolerance holds for an input: its
// scores are of moderate size and its positions not so large that float64
// angles differ.
func comparable(t *testing.T, in input) bool {
	pairs := 0
	for s, n := range in.step.KeyLens {
		pairs += n * in.step.QueryLens[s] * in.config.Heads * in.config.HeadDim
	}
	if math.Abs(in.config.Scale) > 1 || pairs > 1<<20 { // the reference is slow
		return false
	}
	if in.config.Position == nil {
		return true
	}
	for _, term := range termsOf(t, in.config.Position, 1) {
		if math.Abs(term.Scale) > 1 || math.IsNaN(term.Scale) {
			return false
		}
		for _, m := range []attention.PosMap{term.PosQ, term.PosK} {
			for _, x := range []int64{-300, 300, 4000, -4000} {
				if p := m.At(x); !(math.Abs(p) < 1e6) {
					return false
				}
			}
		}
	}
	return true
}

// bytes takes choices from data; past its end every choice is the first.
type bytes struct{ data []byte }

func (g *bytes) next() int {
	if len(g.data) == 0 {
		return 0
	}
	b := g.data[0]
	g.data = g.data[1:]
	return int(b)
}

func (g *bytes) below(n int) int { return g.next() % n }
func (g *bytes) on() bool        { return g.next()%8 == 7 }

// of chooses the earlier of the values more often: what is refused comes last.
func of[T any](g *bytes, from ...T) T {
	b := g.next()
	return from[b*b*b*len(from)>>24]
}

func (g *bytes) config() attention.Config {
	c := attention.Config{
		Heads: of(g, 2, 1, 2, 4, 6, 3, 0, -1), KVHeads: of(g, 1, 1, 2, 2, 3, 0, -2), HeadDim: of(g, 8, 1, 2, 3, 16, 33, 0, -8, 513),
		ValueDim: of(g, 0, 0, 1, 5, 16, 17, -1, 600), DType: of[tensor.DType](g, 0, tensor.F32, tensor.F16, tensor.BF16, 9),
		KVDType: of[tensor.DType](g, 0, tensor.F32, tensor.F16, tensor.BF16, 7), PageSize: of(g, 0, 0, 1, 4, 16, -1),
		Scale: of(g, 0, 0.3, -0.2, 1e30, math.Inf(1), math.NaN()), Policy: of[kernel.Policy](g, kernel.Exact, kernel.Fast, 5),
		KeyStorage: of[kernel.KeyStorage](g, 0, 0, 0, 3), Mask: g.mask(), Position: g.position(),
	}
	if dim := of(g, 0, 2, 8, 4, 6, 3, 700); dim != 0 {
		c.Rotary = plain{dim: dim, layout: of[kernel.RotaryLayout](g, kernel.HalfSplit, kernel.Interleaved, 4), factor: of(g, 0, 1.3)}
	}
	c.Score = attention.Score{
		SoftCap: of(g, 0, 0, 3.5, 0.5, -1, math.NaN(), math.Inf(1)), LogN: of(g, 0, 0, 16, 2, 1, -3),
		Slopes: g.on(), RelBias: g.on(), PrefixBias: g.on(), SinkLogit: g.on(), RelBiasStart: int32(g.next()) - 100,
	}
	return c
}

func (g *bytes) bounds() kernel.Range {
	r := kernel.Range{Lo: int32(g.next()) - 100, Hi: int32(g.next()) - 100}
	if g.below(2) == 0 {
		r.Lo = kernel.MinBound
	}
	if g.below(2) == 0 {
		r.Hi = kernel.MaxBound
	}
	return r
}

func (g *bytes) region() kernel.Region {
	r := kernel.Region{Diff: g.bounds(), Key: g.bounds(), Prefix: g.on()}
	for k := range r.Chunk {
		if g.on() {
			r.Chunk[k] = kernel.ChunkRange{Size: int32(g.next()) - 3, Range: g.bounds()}
		}
	}
	return r
}

func (g *bytes) mask() attention.Mask {
	n := g.next()
	size := g.next() - 2
	var m attention.Mask
	switch n % 10 {
	case 0:
		m = attention.Causal()
	case 1:
		m = attention.Bidirectional()
	case 2:
		m = attention.Window(size)
	case 3:
		m = attention.WindowSinks(size, g.next())
	case 4:
		m = attention.Chunked(size)
	case 5:
		m = attention.PrefixLM()
	case 6:
		m = attention.Documents()
	case 7:
		m.Kinds = kernel.Masks(g.next()) &^ (kernel.MaskTree | kernel.MaskBlocks)
	case 8:
		m.Kinds = kernel.MaskPrefix
		for range 1 + g.below(3) {
			m.Regions = append(m.Regions, g.region())
		}
	case 9:
		m = attention.Tree() // whose data the Step lacks
	}
	if g.on() {
		if both, err := m.And(attention.Window(g.next())); err == nil {
			m = both
		}
	}
	return m
}

// literal is a module with any Terms.
type literal []attention.Term

func (literal) Name() string                          { return "literal" }
func (l literal) Terms(int) ([]attention.Term, error) { return l, nil }

func (g *bytes) posMap() attention.PosMap {
	return attention.PosMap{
		Slope: of(g, 1, 0, -1, 0.25, 3, math.NaN(), math.Inf(1)), Offset: of(g, 0, 0, float64(g.next()), -7.5, math.Inf(-1)),
		Mod: int32(of(g, 0, 0, g.next(), 1, -4)), Div: int32(of(g, 0, 0, g.next(), 1, -4)),
		Lo: of(g, math.Inf(-1), 0, float64(g.next()), math.NaN()), Hi: of(g, math.Inf(1), 30, float64(g.next()), math.NaN()),
	}
}

func (g *bytes) position() attention.Position {
	a, b := g.next()-2, g.next()-2
	switch g.below(11) {
	case 0:
		return nil
	case 10:
		p := modules()
		return p[g.below(len(p))]
	case 1:
		return attention.ReRoPE{Window: a}
	case 2:
		return attention.LeakyReRoPE{Window: a, Factor: of(g, 1, 2.5, 8, 0, -1, math.Inf(1), math.NaN())}
	case 3:
		return attention.SelfExtend{Group: a, Window: of(g, a*4, b)}
	case 4:
		return attention.DCA{Chunk: a, Local: b, MScale: g.next()}
	case 5:
		return attention.STRING{Shift: a, Window: b}
	case 6:
		return attention.LMInfinite{Global: a, Window: b}
	case 7:
		return attention.StreamingLLM{Sinks: a, Recent: b}
	case 8:
		return attention.NoPE{}
	}
	l := make(literal, g.below(4))
	for k := range l {
		l[k] = attention.Term{Region: g.region(), PosQ: g.posMap(), PosK: g.posMap(), Scale: of(g, 0, 0.5, -1, math.NaN(), math.Inf(1))}
	}
	return l
}

// step makes lengths, mostly short, and often the data they ask for.
func (g *bytes) step() attention.Step {
	var s attention.Step
	keys := 0
	for range of(g, 1, 2, 3, 0) {
		n := g.length()
		s.KeyLens = append(s.KeyLens, n)
		s.QueryLens = append(s.QueryLens, of(g, n, min(n, 1), min(n, 3), g.length()))
		s.PrefixLens = append(s.PrefixLens, of(g, 0, g.next(), -1))
		keys += max(0, min(n, 1000))
	}
	if g.on() {
		s.KeyLens = nil
	}
	if g.on() {
		s.PrefixLens = nil
	}
	id := int32(0)
	for range keys + of(g, 0, 0, 1) {
		if g.on() {
			id += int32(g.next()) - 2 // now and then it decreases
		}
		s.Documents = append(s.Documents, id)
	}
	if g.on() {
		s.QueryPos = g.positions(sum(s.QueryLens))
	}
	if g.on() {
		s.KeyPos = g.positions(keys)
	}
	s.Length = of(g, 0, 0, 500, -1)
	return s
}

func (g *bytes) length() int {
	if n := g.next(); n < 240 {
		return n % 90
	}
	return of(g, 0, -1, past(), math.MinInt, 300)
}

// past is the first length that is too long, negative where int has 32 bits.
func past() int {
	n := math.MaxInt32
	n++
	return n
}

func (g *bytes) positions(n int) []int32 {
	p := make([]int32, max(0, min(n, 3000))+of(g, 0, 0, 0, 1))
	for i := range p {
		p[i] = int32(g.next())*16 - 60
	}
	return p
}
