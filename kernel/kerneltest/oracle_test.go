package kerneltest

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// TestFormats: rounding by arithmetic is rounding by bits, for every 16-bit
// pattern and the halfway points between neighbours.
func TestFormats(t *testing.T) {
	for _, d := range []tensor.DType{tensor.F16, tensor.BF16} {
		for u := range 1 << 16 {
			x := d.ToF32(uint16(u))
			if got := decode(d, uint32(u)); got != float64(x) && x == x {
				t.Fatalf("%v: decode(%#x) = %v, want %v", d, u, got, x)
			}
			if x != x {
				continue
			}
			if got := encode(d, float64(x)); got != uint32(u) {
				t.Fatalf("%v: encode(%v) = %#x, want %#x", d, x, got, u)
			}
			next := d.ToF32(uint16(u + 1))
			mid := x/2 + next/2
			for _, y := range []float32{mid, math.Nextafter32(mid, x), math.Nextafter32(mid, next)} {
				if got, want := encode(d, round(d, float64(y))), uint32(d.FromF32(y)); y == y && got != want {
					t.Fatalf("%v: %v rounds to %#x, want %#x", d, y, got, want)
				}
			}
		}
	}
	r := newRandom(1, 1)
	for range 100000 {
		x := r.normal() * math.Ldexp(1, r.below(300)-160)
		if got, want := round(tensor.F32, x), float64(float32(x)); got != want {
			t.Fatalf("f32: %v rounds to %v, want %v", x, got, want)
		}
	}
}

// TestOracleByHand: two keys, worked out on paper.
func TestOracleByHand(t *testing.T) {
	p := (&Problem{Config: attention.Config{Heads: 1, KVHeads: 1, HeadDim: 1, Mask: attention.Causal(), Scale: math.Ln2}, Step: extend(1, 2)}).normal()
	g, err := newGeometry(p)
	if err != nil {
		t.Fatal(err)
	}
	ref := solve64(g, &inputs{query: []float32{1}, key: []float32{1, 2}, value: []float32{3, 6}})
	// weights 2^1 and 2^2 of 6: (2·3 + 4·6)/6 = 5, ln 6
	if math.Abs(ref.out[0]-5) > 1e-15 || math.Abs(ref.lse[0]-math.Log(6)) > 1e-15 {
		t.Errorf("Out %v and LSE %v, want 5 and %v", ref.out[0], ref.lse[0], math.Log(6))
	}
}

// TestOracleGradients: the analytic gradients are the slopes of the forward
// computation, for every kind of thing a Problem has.
func TestOracleGradients(t *testing.T) {
	s := step([]int{3, 1}, []int{5, 4})
	full := attention.Score{SoftCap: 2, LogN: 3, Slopes: true, RelBias: true, PrefixBias: true, SinkLogit: true}
	docs := s
	docs.Documents = documents(2, 3, 4)
	for name, p := range map[string]Problem{
		"plain":     {Config: config(2, 1, 3), Step: s},
		"scores":    {Config: config(2, 2, 2, scored(full)), Step: s, RelBias: 3},
		"two-terms": {Config: config(2, 1, 4, rotated(rope(4, xpos)), positioned(reRoPE(2))), Step: s},
		"chunks":    {Config: config(2, 1, 4, valueDim(2), rotated(rope(2, interleaved)), positioned(dualChunk(2, 3)), masked(attention.Bidirectional())), Step: s},
		"post-rope": {Config: config(2, 1, 4, rotated(rope(4)), postRoPE, masked(attention.WindowSinks(2, 1))), Step: s},
		"documents": {Config: config(1, 1, 3, masked(attention.Documents())), Step: docs},
	} {
		t.Run(name, func(t *testing.T) {
			p.Seed, p.WithDLSE, p.Config.Backward = 3, true, true
			p := p.normal()
			g, err := newGeometry(p)
			if err != nil {
				t.Fatal(err)
			}
			in := p.makeInputs()
			ref := solve64(g, in)
			loss := func() float64 {
				r := solve64(g, in)
				sum := 0.0
				for i, v := range r.out {
					sum += v * float64(in.dout[i])
				}
				for i, v := range r.lse {
					sum += v * float64(in.dlse[i])
				}
				return sum
			}
			for _, x := range []struct {
				name string
				x    []float32
				grad []float64
			}{{"query", in.query, ref.dquery}, {"key", in.key, ref.dkey}, {"value", in.value, ref.dvalue}} {
				for i, v := range x.x {
					const h = 1.0 / 1024
					x.x[i] = v + h
					up, hi := loss(), float64(x.x[i])
					x.x[i] = v - h
					down, lo := loss(), float64(x.x[i])
					x.x[i] = v
					if got := (up - down) / (hi - lo); math.Abs(got-x.grad[i]) > 2e-5 {
						t.Errorf("d%s[%d] is %v, the slope is %v", x.name, i, x.grad[i], got)
					}
				}
			}
		})
	}
}

// TestMasks: the constructors of package attention, as the oracle evaluates
// them, are what they say in one line.
func TestMasks(t *testing.T) {
	const n = 23
	prefix := 7
	docs := documents(5, 1, 11, 6)
	for _, m := range []struct {
		name string
		attention.Mask
		sees func(i, j int) bool
	}{
		{"Causal", attention.Causal(), func(i, j int) bool { return j <= i }},
		{"Bidirectional", attention.Bidirectional(), func(i, j int) bool { return true }},
		{"Window(1)", attention.Window(1), func(i, j int) bool { return j == i }},
		{"Window(5)", attention.Window(5), func(i, j int) bool { return j <= i && i-j < 5 }},
		{"WindowSinks(5, 2)", attention.WindowSinks(5, 2), func(i, j int) bool { return j <= i && (i-j < 5 || j < 2) }},
		{"Chunked(4)", attention.Chunked(4), func(i, j int) bool { return j <= i && i/4 == j/4 }},
		{"PrefixLM", attention.PrefixLM(), func(i, j int) bool { return j <= i || j < prefix }},
		{"Documents", attention.Documents(), func(i, j int) bool { return docs[i] == docs[j] }},
		{"PrefixLM and Window", both(attention.PrefixLM(), attention.Window(5)), func(i, j int) bool { return j <= i && i-j < 5 }},
	} {
		p := (&Problem{Config: config(1, 1, 1, masked(m.Mask)), Step: prefill(n)}).normal()
		p.Step.PrefixLens, p.Step.Documents = []int{prefix}, docs
		g, err := newGeometry(p)
		if err != nil {
			t.Fatal(err)
		}
		for i := range n {
			for j := range n {
				if got, want := g.term(0, 0, i, j) >= 0, m.sees(i, j); got != want {
					t.Errorf("%s: query %d sees key %d: %v, want %v", m.name, i, j, got, want)
				}
			}
		}
	}
}

// TestPositionModules: the relative positions of the modules in the table are
// those their methods are named for.
func TestPositionModules(t *testing.T) {
	for _, m := range []struct {
		positions
		want func(i, j int) float64
	}{
		{reRoPE(5), func(i, j int) float64 { return float64(min(i-j, 5)) }},
		{leaky(4, 0.5), func(i, j int) float64 {
			if d := float64(i - j); d >= 4 {
				return 4 + (d-4)*0.5
			}
			return float64(i - j)
		}},
		{selfExtend(6, 2), func(i, j int) float64 {
			if i-j >= 6 {
				return float64(i/2 - j/2 + 3)
			}
			return float64(i - j)
		}},
		{dualChunk(4, 6), func(i, j int) float64 {
			switch i/4 - j/4 {
			case 0:
				return float64(i - j)
			case 1:
				return float64(min(i%4+4, 6) - j%4)
			}
			return float64(6 - j%4)
		}},
	} {
		p := (&Problem{Config: config(1, 1, 2, positioned(m.positions)), Step: prefill(30)}).normal()
		g, err := newGeometry(p)
		if err != nil {
			t.Fatal(err)
		}
		for i := range 30 {
			for j := range i + 1 {
				term := g.term(0, 0, i, j)
				if term < 0 {
					t.Fatalf("%s: no term for (%d, %d)", m.name, i, j)
				}
				got := mapped(g.terms[term].PosQ, i) - mapped(g.terms[term].PosK, j)
				if math.Abs(got-m.want(i, j)) > 1e-12 {
					t.Errorf("%s: (%d, %d) are %v apart, want %v", m.name, i, j, got, m.want(i, j))
				}
			}
		}
	}
}

// TestGuard: touching the byte after a tensor, or the page before it, is a
// fault that is reported.
func TestGuard(t *testing.T) {
	b, free, err := guarded(100)
	if err != nil {
		t.Fatal(err)
	}
	defer free()
	b[0], b[99] = 1, 1
	if err := guard(func() error { _ = sink(b[99]); return nil }); err != nil {
		t.Fatalf("the last byte: %v", err)
	}
	if !guards {
		t.Skip("no guard pages on this system")
	}
	for _, at := range []int{100, -5000} {
		if guard(func() error { _ = sink(*(*byte)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), at))); return nil }) == nil {
			t.Errorf("byte %d of 100 could be read", at)
		}
	}
}

//go:noinline
func sink(b byte) byte { return b }

// TestCaseNames: names are unique, and cases of an Op stand together.
func TestCaseNames(t *testing.T) {
	seen, last := map[string]bool{}, 0
	for _, c := range Cases() {
		if seen[c.String()] {
			t.Errorf("%s appears twice", &c)
		}
		seen[c.String()] = true
		at := slices.Index(ops, c.Op)
		if at < last {
			t.Errorf("%s stands after cases of %s", &c, ops[last])
		}
		last = at
	}
}

// TestInputs: inputs do not depend on the machine (one draw is recorded), and
// are standard normal.
func TestInputs(t *testing.T) {
	r := newRandom(seedOf("a"), 1)
	if got, want := fmt.Sprintf("%x", r.normal()), "0x1.af4461f0811e1p+00"; got != want {
		t.Errorf("the first number is %s, want %s", got, want)
	}
	const n = 100000
	sum, squares := 0.0, 0.0
	for range n {
		x := r.normal()
		sum, squares = sum+x, squares+x*x
	}
	if mean, variance := sum/n, squares/n; math.Abs(mean) > 0.02 || math.Abs(variance-1) > 0.02 {
		t.Errorf("mean %v and variance %v, want 0 and 1", mean, variance)
	}
}

// TestVerdict: what a refusal and a bare refusal lead to.
func TestVerdict(t *testing.T) {
	refusal := fmt.Errorf("attention: %w", &kernel.UnsupportedError{Backend: "x", Reasons: []string{"it is Monday"}})
	for _, c := range []struct {
		err         error
		unsupported bool
	}{
		{refusal, true},
		{&kernel.UnsupportedError{Backend: "x"}, false},
		{fmt.Errorf("x: %w", errors.ErrUnsupported), false},
	} {
		tr := trial{result: new(Result)}
		tr.fail(c.err)
		if got := tr.result.Unsupported != nil && tr.result.Err == nil; got != c.unsupported {
			t.Errorf("%v counts as a refusal: %v, want %v", c.err, got, c.unsupported)
		}
		if tr.result.OK() {
			t.Errorf("%v is ok", c.err)
		}
	}
	r := Result{Unsupported: refusal}
	if skip, fail := r.verdict(true); skip != "" || fail == "" {
		t.Errorf("a must that is refused: skip %q, fail %q", skip, fail)
	}
	if skip, fail := r.verdict(false); skip == "" || fail != "" {
		t.Errorf("a case that is refused and no must: skip %q, fail %q", skip, fail)
	}
	r.Differences = 1
	if _, fail := r.verdict(false); fail == "" {
		t.Error("differences beside a refusal do not fail")
	}
}
