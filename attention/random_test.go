package attention_test

import (
	"flag"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random tests; 0: a new one each run")

// random calls f a number of times with a generator whose seed a failure prints.
func random(t *testing.T, times int, f func(t *testing.T, r *rand.Rand)) {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("go test -run '^%s$' -seed=%d repeats this run", t.Name(), seed)
	if testing.Short() {
		times = (times + 3) / 4
	}
	r := rand.New(rand.NewPCG(seed, 0))
	for range times {
		f(t, r)
	}
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// randomConfig has no Mask.
func randomConfig(r *rand.Rand) attention.Config {
	kvHeads := 1 + r.IntN(3)
	c := attention.Config{
		Heads: kvHeads * (1 + r.IntN(4)), KVHeads: kvHeads,
		HeadDim: pick(r, 1, 2, 3, 8, 12, 16, 20, 33, 64), ValueDim: pick(r, 0, 1, 4, 7, 16, 40),
		DType: pick(r, 0, tensor.F32, tensor.F16, tensor.BF16), KVDType: pick(r, 0, 0, tensor.F32, tensor.F16, tensor.BF16),
		PageSize: pick(r, 0, 0, 1, 5, 16, 64), Scale: pick(r, 0, 0, 0, 0.3, -0.1),
		Position: pick(r, modules()...),
	}
	if c.HeadDim > 1 && r.IntN(4) > 0 {
		dim := 2 + 2*r.IntN(c.HeadDim/2)
		c.Rotary = plain{dim: dim, layout: pick(r, kernel.HalfSplit, kernel.Interleaved), factor: pick(r, 0, 0, 1.2)}
	}
	on := func() bool { return r.IntN(5) == 0 }
	c.Score = attention.Score{Slopes: on(), RelBias: on(), PrefixBias: on(), SinkLogit: on(), RelBiasStart: r.Int32N(9) - 4}
	if on() {
		c.Score.SoftCap = 0.5 + 4*r.Float64()
	}
	if on() {
		c.Score.LogN = 2 + r.IntN(60)
	}
	return c
}

// causalMask is one that shows no query a later key.
func causalMask(r *rand.Rand) attention.Mask {
	switch r.IntN(4) {
	case 0:
		return attention.Window(1 + r.IntN(90))
	case 1:
		return attention.WindowSinks(1+r.IntN(40), r.IntN(9))
	case 2:
		if m := attention.Chunked(1 + r.IntN(90)); r.IntN(2) == 0 {
			return m
		}
	}
	return attention.Causal()
}

func anyMask(r *rand.Rand) attention.Mask {
	m := causalMask(r)
	switch r.IntN(4) {
	case 0:
		m = attention.Bidirectional()
	case 1:
		m = attention.PrefixLM()
	}
	if r.IntN(3) == 0 {
		m, _ = m.And(attention.Documents()) // adds no chunk size
	}
	return m
}

// randomStep has keys for every query, and the data of the masks.
func randomStep(r *rand.Rand, sequences int) attention.Step {
	var s attention.Step
	for range sequences {
		keys := pick(r, 0, 1, 2, 5, 17, 63, 64, 65, 90, 128, 130)
		if r.IntN(8) == 0 {
			keys = 505 + r.IntN(30)
		}
		queries := keys
		if r.IntN(2) == 0 {
			queries = r.IntN(min(keys, 40) + 1)
		}
		s.QueryLens, s.KeyLens = append(s.QueryLens, queries), append(s.KeyLens, keys)
		s.PrefixLens = append(s.PrefixLens, r.IntN(keys+3))
		id := r.Int32N(5) - 2
		for range keys {
			if r.IntN(20) == 0 {
				id += 1 + r.Int32N(3)
			}
			s.Documents = append(s.Documents, id)
		}
	}
	return s
}

func randomInput(r *rand.Rand, sequences int, mask func(*rand.Rand) attention.Mask) input {
	in := input{config: randomConfig(r), step: randomStep(r, sequences)}
	in.config.Mask = mask(r)
	in.fill(r)
	return in
}

// sequence is sequence s of an input on its own.
func (in input) sequence(s int) input {
	one, at := in, in.step
	q0, k0 := sum(at.QueryLens[:s]), sum(at.KeyLens[:s])
	q1, k1 := q0+at.QueryLens[s], k0+at.KeyLens[s]
	one.step = attention.Step{
		QueryLens: at.QueryLens[s : s+1], KeyLens: at.KeyLens[s : s+1],
		PrefixLens: at.PrefixLens[s : s+1], Documents: at.Documents[k0:k1],
	}
	if at.QueryPos != nil {
		one.step.QueryPos = at.QueryPos[q0:q1]
	}
	if at.KeyPos != nil {
		one.step.KeyPos = at.KeyPos[k0:k1]
	}
	one.query = in.query.Slice(0, int64(q0), int64(q1))
	one.key, one.value = packed(in.key, k0, k1), packed(in.value, k0, k1)
	one.scores.PrefixBias = in.scores.PrefixBias.Slice(0, int64(k0), int64(k1))
	return one
}

// packed is a copy of rows lo <= j < hi that starts at the start of a buffer.
func packed(v tensor.View, lo, hi int) tensor.View {
	out := tensor.New(v.DType, int64(hi-lo), v.Shape[1], v.Shape[2])
	for j := lo; j < hi; j++ {
		copyRow(out, int64(j-lo), v, int64(j))
	}
	return out
}

// part is queries lo <= q < hi of an input of one sequence, with the keys up to
// the last of them: what a chunk of a prefill sees.
func (in input) part(lo, hi int) input {
	keys := in.step.KeyLens[0] - in.step.QueryLens[0] + hi
	one := in
	one.step = attention.Step{
		QueryLens: []int{hi - lo}, KeyLens: []int{keys},
		PrefixLens: in.step.PrefixLens, Documents: in.step.Documents[:keys],
	}
	one.query = in.query.Slice(0, int64(lo), int64(hi))
	one.key, one.value = packed(in.key, 0, keys), packed(in.value, 0, keys)
	one.scores.PrefixBias = in.scores.PrefixBias.Slice(0, 0, int64(keys))
	return one
}
