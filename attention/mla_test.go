package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// latent is a layer of MLA with its weights, and a sequence.
type latent struct {
	m               attention.MLA
	upKey, upValue  []float32
	query, row      tensor.View // [q, Heads, Rope+Nope], [n, 1, Row]
	config          attention.Config
	queries, tokens int
}

func newLatent(r *rand.Rand, m attention.MLA, queries, tokens int) *latent {
	random := func(n int, size float64) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(r.NormFloat64() * size)
		}
		return x
	}
	l := &latent{m: m, queries: queries, tokens: tokens}
	small := 1 / math.Sqrt(float64(m.Latent))
	l.upKey, l.upValue = random(m.Heads*m.Nope*m.Latent, small), random(m.Heads*m.Value*m.Latent, small)
	l.query = normal(r, tensor.F32, int64(queries), int64(m.Heads), int64(m.Rope+m.Nope))
	l.row = normal(r, tensor.F32, int64(tokens), 1, int64(m.Row()))
	l.config.Mask = attention.Causal()
	if m.Rope > 0 {
		l.config.Rotary = plain{dim: m.Rope, layout: kernel.Interleaved}
	}
	return l
}

// outputs computes the step in both forms: [q, Heads, Value].
func (l *latent) outputs(t *testing.T, b kernel.Backend) (naive, absorbed result) {
	t.Helper()
	in := input{config: l.config, step: attention.Step{QueryLens: []int{l.queries}, KeyLens: []int{l.tokens}}, query: l.query}
	if err := l.m.Naive(&in.config); err != nil {
		t.Fatal(err)
	}
	key, value, err := l.m.Expand(l.row.F32s(), l.upKey, l.upValue)
	if err != nil {
		t.Fatal(err)
	}
	n, h := int64(l.tokens), int64(l.m.Heads)
	in.key, in.value = tensor.FromF32(key, n, h, int64(l.m.Rope+l.m.Nope)), tensor.FromF32(value, n, h, int64(l.m.Value))
	naive = run(t, b, in)
	newReference(t, in).check(t, naive, 2e-5)

	in.config = l.config
	if err := l.m.Absorbed(&in.config); err != nil {
		t.Fatal(err)
	}
	query, err := l.m.Absorb(l.query.F32s(), l.upKey)
	if err != nil {
		t.Fatal(err)
	}
	in.query = tensor.FromF32(query, int64(l.queries), h, int64(l.m.Row()))
	in.key = l.row
	if in.value, err = l.m.Values(l.row); err != nil {
		t.Fatal(err)
	}
	absorbed = run(t, b, in)
	newReference(t, in).check(t, absorbed, 2e-5)
	out, err := l.m.Output(absorbed.out, l.upValue)
	if err != nil {
		t.Fatal(err)
	}
	return naive, result{out, absorbed.lse, l.m.Heads, l.m.Value}
}

func TestMLANaiveIsAbsorbed(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(1, 1))
	for _, m := range []attention.MLA{
		{Heads: 3, Latent: 24, Rope: 4, Nope: 6, Value: 10}, {Heads: 1, Latent: 5, Rope: 0, Nope: 3, Value: 2},
		{Heads: 2, Latent: 512, Rope: 64, Nope: 128, Value: 128}, // DeepSeek-V2 and V3
	} {
		for _, c := range [][2]int{{1, 1}, {1, 70}, {9, 40}} {
			l := newLatent(r, m, c[0], c[1])
			naive, absorbed := l.outputs(t, b)
			near(t, fmt.Sprintf("%+v", m), absorbed, naive, 5e-5)
		}
	}
}

// The same in float64 alone, by the formulas: the two forms are one function.
func TestMLANaiveIsAbsorbedInFloat64(t *testing.T) {
	r := rand.New(rand.NewPCG(2, 2))
	m := attention.MLA{Heads: 2, Latent: 16, Rope: 4, Nope: 6, Value: 5}
	l := newLatent(r, m, 1, 30)
	b := backend(t, 1)
	naive, _ := l.outputs(t, b)
	c := l.config
	if err := m.Absorbed(&c); err != nil {
		t.Fatal(err)
	}
	rotation, err := l.config.Rotary.Rotation(1)
	if err != nil {
		t.Fatal(err)
	}
	ref := reference{input: input{config: c, query: l.query, key: l.row}, rotation: rotation}
	for h := range 2 {
		weight := func(w []float32, n, d, c int) float64 { return float64(w[(h*n+d)*m.Latent+c]) }
		query := ref.rotated(l.query, 0, h, 29)
		absorbed := make([]float64, m.Latent)
		for c := range absorbed {
			for d := range m.Nope {
				absorbed[c] += query[m.Rope+d] * weight(l.upKey, m.Nope, d, c)
			}
		}
		var one, two []float64
		var values, latents [][]float64
		for j := range 30 {
			row := ref.rotated(l.row, j, 0, float64(j))
			part := dot(query[:m.Rope], row[:m.Rope])
			key, value := make([]float64, m.Nope), make([]float64, m.Value)
			for c, x := range row[m.Rope:] {
				for d := range key {
					key[d] += weight(l.upKey, m.Nope, d, c) * x
				}
				for d := range value {
					value[d] += weight(l.upValue, m.Value, d, c) * x
				}
			}
			one, two = append(one, c.Scale*(part+dot(query[m.Rope:], key))), append(two, c.Scale*(part+dot(absorbed, row[m.Rope:])))
			values, latents = append(values, value), append(latents, row[m.Rope:])
		}
		want, lse := softmaxRow(one, values, m.Value)
		latent, same := softmaxRow(two, latents, m.Latent)
		if math.Abs(lse-same) > 1e-12 {
			t.Fatalf("LSE is %v absorbed, %v naive", same, lse)
		}
		for d := range want {
			got := 0.0
			for c, x := range latent {
				got += weight(l.upValue, m.Value, d, c) * x
			}
			if math.Abs(got-want[d]) > 1e-12 {
				t.Fatalf("head %d: Out[%d] is %v absorbed, %v naive", h, d, got, want[d])
			}
			if x := float64(naive.out[h*m.Value+d]); math.Abs(x-want[d]) > 2e-5 {
				t.Fatalf("head %d: Out[%d] is %v on the backend, want %v", h, d, x, want[d])
			}
		}
	}
}

// Rows live in a paged cache once, and the values are views of them.
func TestMLADecodesFromAPagedCache(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(3, 3))
	m := attention.MLA{Heads: 4, Latent: 512, Rope: 64, Nope: 16, Value: 8}
	const tokens = 70
	l := newLatent(r, m, 1, tokens)
	_, want := l.outputs(t, b)
	// a cache has a value a token at least; it is not read
	cache, err := kvcache.New(b, kvcache.Config{Layers: 1, Pages: 9, PageSize: 16, KVHeads: 1, HeadDim: m.Row(), ValueDim: 1, DType: tensor.F32, KeyStorage: kernel.PreRoPE})
	if err != nil {
		t.Fatal(err)
	}
	id := cache.NewSequence()
	slots, err := cache.Extend([]kvcache.ID{id}, []int{tokens}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := cache.Append(0, slots, l.row, tensor.New(tensor.F32, tokens, 1, 1)); err != nil {
		t.Fatal(err)
	}
	rows := cache.KeyView(0)
	values, err := m.Values(rows)
	if err != nil {
		t.Fatal(err)
	}
	c := l.config
	c.PageSize = 16
	if err := m.Absorbed(&c); err != nil {
		t.Fatal(err)
	}
	a, err := attention.New(b, c)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Plan(attention.Step{QueryLens: []int{1}, KV: cache.Sequences(id)}); err != nil {
		t.Fatal(err)
	}
	query, err := m.Absorb(l.query.F32s(), l.upKey)
	if err != nil {
		t.Fatal(err)
	}
	out := tensor.New(tensor.F32, 1, 4, int64(m.Latent))
	if err := a.Run(&kernel.Args{Query: tensor.FromF32(query, 1, 4, int64(m.Row())), Key: rows, Value: values, Out: out}); err != nil {
		t.Fatal(err)
	}
	got, err := m.Output(out.F32s(), l.upValue)
	if err != nil {
		t.Fatal(err)
	}
	sameBits(t, "paged", result{got, want.lse, 4, m.Value}, want)
}

// The scale is that of the keys a head has, in both forms, unless it is given.
func TestMLAScale(t *testing.T) {
	m := attention.MLA{Heads: 128, Latent: 512, Rope: 64, Nope: 128, Value: 128}
	for name, lower := range map[string]func(*attention.Config) error{"naive": m.Naive, "absorbed": m.Absorbed} {
		var c attention.Config
		if err := lower(&c); err != nil || c.Scale != 1/math.Sqrt(192) {
			t.Errorf("%s: scale %v, %v, want 1/√192", name, c.Scale, err)
		}
		c.Scale = 0.5
		if err := lower(&c); err != nil || c.Scale != 0.5 {
			t.Errorf("%s: scale %v, %v, want the one given", name, c.Scale, err)
		}
	}
}

func TestMLARefuses(t *testing.T) {
	good := attention.MLA{Heads: 2, Latent: 8, Rope: 2, Nope: 3, Value: 4}
	for _, m := range []attention.MLA{
		{}, {Heads: 1 << 20, Latent: 8, Rope: 2, Nope: 3, Value: 4}, {Heads: 2, Latent: 8, Rope: 1, Nope: 3, Value: 4}, {Heads: 2, Latent: 8, Rope: -2, Nope: 3, Value: 4},
		{Heads: 2, Latent: 512, Rope: 66, Nope: 3, Value: 4}, {Heads: 2, Latent: 8, Rope: 2, Nope: 3, Value: 600}, {Heads: 2, Latent: 8, Rope: math.MaxInt - 1, Nope: 3, Value: 4},
	} {
		refused(t, fmt.Sprintf("naive %+v", m), m.Naive(&attention.Config{}))
		refused(t, fmt.Sprintf("absorbed %+v", m), m.Absorbed(&attention.Config{}))
		_, err := m.Absorb(nil, nil)
		refused(t, fmt.Sprintf("%+v", m), err)
	}
	_, err := good.Absorb(make([]float32, 9), make([]float32, 48))
	refused(t, "half a query", err)
	_, err = good.Absorb(make([]float32, 10), make([]float32, 47))
	refused(t, "few weights", err)
	_, _, err = good.Expand(make([]float32, 10), make([]float32, 48), make([]float32, 63))
	refused(t, "few weights of values", err)
	_, err = good.Output(make([]float32, 15), make([]float32, 64))
	refused(t, "half an output", err)
	_, err = good.Values(tensor.New(tensor.F32, 3, 1, 8))
	refused(t, "narrow rows", err)
}
