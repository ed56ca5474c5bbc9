package kerneltest

import (
	"fmt"
	"math"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/internal/xmath"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func float32frombits(u uint32) float32 { return math.Float32frombits(u) }

// rope is plain rotation of dim features, of base 10000, changed by edits.
func rope(dim int, edits ...func(*kernel.Rotation)) rotary {
	r := kernel.Rotation{Dim: dim, Factor: 1}
	for k := range dim / 2 {
		r.InvFreq = append(r.InvFreq, xmath.Pow(10000, -2*float64(k)/float64(dim)))
	}
	for _, e := range edits {
		e(&r)
	}
	return rotary(r)
}

func interleaved(r *kernel.Rotation) { r.Layout = kernel.Interleaved }

// xpos is the decay of Sun et al., "A Length-Extrapolatable Transformer",
// https://arxiv.org/abs/2212.10554, section 3.2.
func xpos(r *kernel.Rotation) {
	r.ZetaBase = 512
	for k := range r.Dim / 2 {
		r.Zeta = append(r.Zeta, (2*float64(k)/float64(r.Dim)+0.4)/1.4)
	}
}

func rotated(r rotary) func(*attention.Config) { return func(c *attention.Config) { c.Rotary = r } }
func postRoPE(c *attention.Config)             { c.KeyStorage = kernel.PostRoPE }

func positioned(p attention.Position) func(*attention.Config) {
	return func(c *attention.Config) { c.Position = p }
}

func (t *builder) rotations() {
	s := step([]int{1, 70, 0, 3, 4}, []int{130, 70, 4, 590, 2})
	for _, r := range []struct {
		name string
		r    rotary
	}{
		{"half-split", rope(32)},
		{"interleaved", rope(32, interleaved)},
		{"partial/half-split", rope(12)},
		{"partial/interleaved", rope(12, interleaved)},
		{"two-features", rope(2)},
		{"factor", rope(32, func(r *kernel.Rotation) { r.Factor = 1.27 })},
		{"score-scale", rope(32, func(r *kernel.Rotation) { r.ScoreScale = 1.6 })},
		{"xpos/half-split", rope(32, xpos)},
		{"xpos/interleaved", rope(24, xpos, interleaved)},
		{"compat-f32", rope(32, func(r *kernel.Rotation) { r.CompatF32, r.Factor = true, 1.1 })},
	} {
		for _, k := range []kernel.KeyStorage{kernel.PreRoPE, kernel.PostRoPE} {
			c := config(4, 2, 32, rotated(r.r), func(c *attention.Config) { c.KeyStorage = k })
			t.attention(fmt.Sprintf("rotation/%s/%v", r.name, k), c, s)
			c.DType, c.KVDType, c.PageSize = tensor.BF16, tensor.F16, 16
			t.attention(fmt.Sprintf("rotation/%s/%v/f16-paged", r.name, k), c, s)
		}
	}
	for _, d := range []int{2, 26, 64, 128} {
		t.attention(fmt.Sprintf("rotation/dim=%d", d), config(4, 2, d, rotated(rope(d))), step([]int{1, 9}, []int{70, 66}))
	}
	t.attention("rotation/valuedim", config(4, 2, 24, valueDim(16), rotated(rope(8, interleaved))), step([]int{1, 9}, []int{70, 66}))

	given := step([]int{3, 1, 5}, []int{70, 40, 66})
	for i := range sum(given.QueryLens) {
		given.QueryPos = append(given.QueryPos, int32(200-7*i))
	}
	for i := range sum(given.KeyLens) {
		given.KeyPos = append(given.KeyPos, int32(i*i%151-20))
	}
	t.attention("positions/given", config(4, 2, 32, rotated(rope(32))), given)
	t.attention("positions/given/paged", config(4, 2, 32, rotated(rope(32)), paged(16)), given)
	t.attention("positions/given/two-terms", config(4, 2, 32, rotated(rope(32)), positioned(reRoPE(9))), given)
	keys := given
	keys.QueryPos = nil
	t.attention("positions/given/keys-only", config(4, 2, 32, rotated(rope(32))), keys)
	t.attention("positions/given/keys-only/paged", config(4, 2, 32, rotated(rope(32)), paged(16)), keys)
	keys.ByRank = true
	t.attention("positions/given/by-rank", config(4, 2, 32, rotated(rope(32)), paged(16)), keys)
	queries := given
	queries.KeyPos = nil
	t.attention("positions/given/queries-only", config(4, 2, 32, rotated(rope(32)), postRoPE), queries)
	far := step([]int{3}, []int{70})
	for i := range 70 {
		far.KeyPos = append(far.KeyPos, int32(1_000_000+i))
	}
	far.QueryPos = []int32{1_000_067, 1_000_068, 1_000_069}
	t.attention("positions/far", config(4, 2, 32, rotated(rope(32))), far)
}

func diff(lo, hi int32) kernel.Region {
	return kernel.Region{Diff: kernel.Range{Lo: lo, Hi: hi}, Key: kernel.All}
}

func slope(s, offset float64) attention.PosMap {
	m := attention.Identity
	m.Slope, m.Offset = s, offset
	return m
}

// reRoPE rotates pairs w or more apart as if they were w apart.
func reRoPE(w int32) positions {
	return positions{"rerope", []attention.Term{
		{Region: diff(kernel.MinBound, w), PosQ: attention.Identity, PosK: attention.Identity},
		{Region: diff(w, kernel.MaxBound), PosQ: attention.Constant(float64(w)), PosK: attention.Constant(0)},
	}}
}

// leaky lets far pairs grow apart at a fraction of the pace.
func leaky(w int32, pace float64) positions {
	return positions{"leaky", []attention.Term{
		{Region: diff(kernel.MinBound, w), PosQ: attention.Identity, PosK: attention.Identity},
		{Region: diff(w, kernel.MaxBound), PosQ: slope(pace, float64(w)*(1-pace)), PosK: slope(pace, 0)},
	}}
}

// selfExtend groups the positions of far pairs by g.
func selfExtend(w int32, g int) positions {
	return positions{"self-extend", []attention.Term{
		{Region: diff(kernel.MinBound, w), PosQ: attention.Identity, PosK: attention.Identity},
		{Region: diff(w, kernel.MaxBound), PosQ: attention.Identity.Group(g).Shift(float64(int(w) - int(w)/g)), PosK: attention.Identity.Group(g)},
	}}
}

// dualChunk has pairs in a chunk of size n, in neighbouring chunks, and farther
// apart; keys turn by their place in their chunk in all three.
func dualChunk(n, c int) positions {
	chunk := func(lo, hi int32) kernel.Region {
		r := kernel.Everywhere
		r.Chunk[0] = kernel.ChunkRange{Size: int32(n), Range: kernel.Range{Lo: lo, Hi: hi}}
		return r
	}
	in := attention.Identity.Wrap(n)
	return positions{"dual-chunk", []attention.Term{
		{Region: chunk(kernel.MinBound, 1), PosQ: in, PosK: in},
		{Region: chunk(1, 2), PosQ: in.Shift(float64(n)).AtMost(float64(c)), PosK: in},
		{Region: chunk(2, kernel.MaxBound), PosQ: attention.Constant(float64(c)), PosK: in, Scale: 1.25},
	}}
}

// scaled is one Term with everything a PosMap has.
func scaled() positions {
	m := attention.PosMap{Slope: 0.37, Offset: -1.5, Mod: 50, Div: 3, Lo: -1, Hi: 4}
	return positions{"scaled", []attention.Term{{Region: kernel.Everywhere, PosQ: m, PosK: slope(-0.25, 3), Scale: 0.8}}}
}

// partial leaves pairs between near and far in no Term: they are not seen.
func partial() positions {
	return positions{"partial", []attention.Term{
		{Region: diff(0, 7), PosQ: attention.Identity, PosK: attention.Identity},
		{Region: diff(40, 90), PosQ: attention.Constant(8), PosK: attention.Constant(1)},
	}}
}

func (t *builder) positions() {
	s := step([]int{1, 75, 0, 3, 4}, []int{130, 75, 4, 540, 2})
	sinks := masked(attention.WindowSinks(30, 4))
	for _, p := range []positions{reRoPE(10), leaky(12, 0.125), leaky(9, 1.0/3), selfExtend(12, 4), dualChunk(16, 24), scaled(), partial()} {
		name := fmt.Sprintf("positions/%s", p.name)
		if p.name == "leaky" {
			name += fmt.Sprintf("/pace=%.3f", p.terms[1].PosK.Slope)
		}
		c := config(4, 2, 16, rotated(rope(16)), positioned(p))
		t.attention(name, c, s)
		t.attention(name+"/window-sinks", config(4, 2, 16, rotated(rope(16, interleaved)), positioned(p), sinks), s)
		t.attention(name+"/no-rotation", config(4, 2, 16, positioned(p)), s)
		c.DType, c.KVDType, c.PageSize, c.Rotary = tensor.F16, tensor.BF16, 17, rope(8, xpos)
		c.Score = attention.Score{SinkLogit: true, LogN: 30, Slopes: true}
		t.attention(name+"/paged-xpos-scores", c, s)
	}
	t.attention("positions/dual-chunk/post-rope", config(4, 2, 16, rotated(rope(16)), positioned(dualChunk(16, 24)), postRoPE), s)
	t.attention("positions/dual-chunk/bidirectional", config(4, 2, 16, rotated(rope(16)), positioned(dualChunk(16, 24)), masked(attention.Bidirectional())), s)
	t.attention("positions/rerope/bidirectional", config(4, 2, 16, rotated(rope(16)), positioned(reRoPE(10)), masked(attention.Bidirectional())), s)
	t.attention("positions/rerope/chunked", config(4, 2, 16, rotated(rope(16)), positioned(reRoPE(10)), masked(attention.Chunked(50))), s)
	t.attention("positions/rerope/long", config(2, 1, 16, rotated(rope(16)), positioned(reRoPE(500))), extend(40, 1100))
}
