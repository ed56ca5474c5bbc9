package rope_test

import (
	"math"
	"math/rand/v2"
	"reflect"
	"strings"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/rope"
	"github.com/longctx/longctx/tensor"
)

// The mistakes that other implementations made, each with the thread that
// reports it.

func scores(t *testing.T, q, k tensor.View) []float64 {
	t.Helper()
	var s []float64
	for i := range q.Shape[0] {
		for j := range k.Shape[0] {
			sum := 0.0
			for d := range q.Shape[2] {
				sum += float64(q.At(i, 0, d)) * float64(k.At(j, 0, d))
			}
			s = append(s, sum)
		}
	}
	return s
}

func furthest(a, b []float64) (worst float64) {
	for i := range a {
		worst = max(worst, math.Abs(a[i]-b[i]))
	}
	return worst
}

// huggingface/transformers #25104, #24653, #27227: dynamic NTK moves the base
// while cached keys hold the old rotation. The method says so, and keys cached
// before rotation score as if the whole sequence had come at once.
func TestPitfall01DynamicNTKMovesBase(t *testing.T) {
	m := rope.DynamicNTK{Base: rope.Base{HeadDim: 64}, Factor: 2, MaxLength: 128}
	if !m.DependsOnLength() {
		t.Fatal("DependsOnLength is false")
	}
	rng := rand.New(rand.NewPCG(2, 1))
	keys, query := random(rng, 256, 1, 64), random(rng, 1, 1, 64)
	then, now := lower(t, m, 128), lower(t, m, 256)
	p, last := rope.Text(count(0, 256)), rope.Text([]int32{255})
	at256 := apply(t, query, last, now)
	want := scores(t, at256, apply(t, keys, p, now))
	stale := scores(t, at256, apply(t, keys, p, then))
	if d := furthest(want, stale); d < 1 {
		t.Errorf("keys of the old base score within %v: the base did not move", d)
	}
	fresh := scores(t, apply(t, query, last, lower(t, m, 256)), apply(t, keys, p, lower(t, m, 256)))
	if d := furthest(want, fresh); d != 0 {
		t.Errorf("rotating afresh is off by %v", d)
	}
	// up to MaxLength the trained base holds, at every length
	if !reflect.DeepEqual(lower(t, m, 1), then) || !reflect.DeepEqual(then, lower(t, rope.Default{Base: m.Base}, 0)) {
		t.Error("the base moves below MaxLength")
	}
}

// vLLM #3488, #5093: there "dynamic" is computed once, for the longest
// length. That reading has a name of its own here.
func TestPitfall02VLLMDynamicIsStatic(t *testing.T) {
	m := rope.DynamicNTK{Base: rope.Base{HeadDim: 128}, Factor: 4, MaxLength: 4096}
	static := m
	static.AtMaxLength = true
	if static.DependsOnLength() {
		t.Error("AtMaxLength depends on length")
	}
	for _, n := range []int{0, 4096, 16384, 1 << 20} {
		if !reflect.DeepEqual(lower(t, static, n), lower(t, m, 4*4096)) {
			t.Errorf("at length %d AtMaxLength is not the base of the longest length", n)
		}
	}
	if reflect.DeepEqual(lower(t, static, 8192), lower(t, m, 8192)) {
		t.Error("the readings agree below the longest length")
	}
}

// huggingface/transformers #33129, vLLM #27414, llama.cpp #24875,
// onnxruntime-genai #1161, unsloth #10681: LongRoPE changes its factors when
// the length passes L, not at L, and keys cached before are stale.
func TestPitfall03LongRoPESwitchesAboveOriginalLength(t *testing.T) {
	long := make([]float64, 32)
	for i := range long {
		long[i] = 10
	}
	m := rope.LongRoPE{Base: rope.Base{HeadDim: 64}, Short: ones(32), Long: long, OriginalLength: 4096, MaxLength: 131072}
	if !m.DependsOnLength() {
		t.Error("DependsOnLength is false")
	}
	first := lower(t, m, 1)
	for n, isLong := range map[int]bool{4095: false, 4096: false, 4097: true, 131072: true} {
		if got := !reflect.DeepEqual(lower(t, m, n), first); got != isLong {
			t.Errorf("length %d takes the long factors: %v, want %v", n, got, isLong)
		}
	}
	if f := lower(t, m, 4097).InvFreq[0]; f != 0.1 {
		t.Errorf("first long frequency is %v, want 0.1", f)
	}
	// one scale for both lists, unless each has its own
	if a, b := lower(t, m, 1).Factor, lower(t, m, 5000).Factor; a != b {
		t.Errorf("attention factors are %v and %v", a, b)
	}
	m.ShortMScale, m.LongMScale = 1.1, 1.2
	if a, b := lower(t, m, 1).Factor, lower(t, m, 5000).Factor; a != 1.1 || b != 1.2 {
		t.Errorf("attention factors are %v and %v, want 1.1 and 1.2", a, b)
	}
}

// huggingface/transformers #29285, #25681, #29496, vLLM #1004, sglang-jax
// #1472, candle #3520: positions or tables in 16 bits. At position 4095 bf16
// is a whole turn off; the table is not, and neighbours differ.
func TestPitfall04NoSixteenBitPositions(t *testing.T) {
	r := lower(t, rope.Default{Base: rope.Base{HeadDim: 128}}, 0)
	p := []int32{4095, 4096, 16777215, 16777217} // the last is no float32
	table, err := rope.Table(r, rope.Text(p), kernel.QuerySide)
	if err != nil {
		t.Fatal(err)
	}
	for i, x := range p {
		if d := math.Abs(float64(table.Cos[i*64]) - math.Cos(float64(x))); d > 0x1p-24 {
			t.Errorf("cosine at %d is off by %v", x, d)
		}
	}
	rounded := float64(tensor.BF16ToF32(tensor.F32ToBF16(4095)))
	if d := math.Abs(math.Cos(rounded) - math.Cos(4095)); d < 0.1 {
		t.Errorf("bf16 is off by %v: this test could not fail", d)
	}
}

// mlx-lm #1507, DeepSeek-R1 #684, exllamav3 #259: attention_factor replaces
// the computed factor, it does not multiply it; and "attn_factor" is another
// key.
func TestPitfall05AttentionFactorReplaces(t *testing.T) {
	m := rope.YaRN{Base: rope.Base{HeadDim: 64}, Factor: 16, OriginalLength: 4096, AttentionFactor: 1.5}
	if a := lower(t, m, 0).Factor; a != 1.5 {
		t.Errorf("factor is %v, want 1.5", a)
	}
	m.MScale, m.MScaleAllDim = 1, 0.5
	if a := lower(t, m, 0).Factor; a != 1.5 {
		t.Errorf("factor beside mscale is %v, want 1.5", a)
	}
	_, err := rope.ParseHF([]byte(`{"head_dim":64,"rope_theta":1e4,"rope_scaling":{"rope_type":"yarn","factor":4,
		"original_max_position_embeddings":4096,"attn_factor":1}}`))
	if err == nil || !strings.Contains(err.Error(), "attn_factor") || !strings.Contains(err.Error(), "attention_factor") {
		t.Errorf("error is %v, want the key and those allowed", err)
	}
}

// huggingface/transformers #47435, mobius #548: mscale_all_dim is part of the
// factor, and of the scores where attention is latent.
func TestPitfall06MScaleAllDim(t *testing.T) {
	g := func(m float64) float64 { return 1 + 0.1*m*math.Log(40) }
	m := rope.YaRN{Base: rope.Base{HeadDim: 64}, Factor: 40, OriginalLength: 4096, MScale: 1, MScaleAllDim: .5}
	r := lower(t, m, 0)
	if want := g(1) / g(.5); math.Abs(r.Factor-want) > 1e-15 || r.ScoreScale != 1 {
		t.Errorf("factors are %v and %v, want %v and 1", r.Factor, r.ScoreScale, want)
	}
	m.ScaleScores = true
	if r = lower(t, m, 0); math.Abs(r.ScoreScale-g(.5)*g(.5)) > 1e-14 {
		t.Errorf("score scale is %v, want %v", r.ScoreScale, g(.5)*g(.5))
	}
	// one of the two alone is as none
	m.MScale = 0
	if r = lower(t, m, 0); math.Abs(r.Factor-g(1)) > 1e-15 {
		t.Errorf("factor is %v, want %v", r.Factor, g(1))
	}
}

// vLLM #27722, #28244, huggingface/transformers #42189, keras-hub #2981, TVM
// #18576: truncate=false keeps the ramp between pairs, here from
// 8.092779115512402 to 17.39802450158856; the upper end is clamped to d−1,
// not to the last pair.
func TestPitfall07TruncateAndClamp(t *testing.T) {
	const low, high = 8.092779115512402, 17.39802450158856
	b := rope.Base{HeadDim: 64, Theta: 150000}
	r := lower(t, rope.YaRN{Base: b, Factor: 32, OriginalLength: 4096, NoTruncate: true}, 0)
	plain := lower(t, rope.Default{Base: b}, 0)
	for i, f := range r.InvFreq {
		ramp := min(max((float64(i)-low)/(high-low), 0), 1)
		want := plain.InvFreq[i]*(1-ramp) + plain.InvFreq[i]/32*ramp
		if math.Abs(f/want-1) > 1e-13 {
			t.Errorf("pair %d is %v, want %v", i, f, want)
		}
	}
	// so long a training that the ramp ends beyond the pairs: ends at d−1 = 15
	b = rope.Base{HeadDim: 16}
	r = lower(t, rope.YaRN{Base: b, Factor: 2, OriginalLength: 1 << 30, BetaFast: 1e6}, 0)
	plain = lower(t, rope.Default{Base: b}, 0)
	start := math.Floor(16 * math.Log((1<<30)/(1e6*2*math.Pi)) / (2 * math.Log(1e4)))
	ramp := (7 - start) / (15 - start)
	if want := plain.InvFreq[7] * (1 - ramp/2); math.Abs(r.InvFreq[7]/want-1) > 1e-13 {
		t.Errorf("last pair is %v, want %v: the ramp does not end at d−1", r.InvFreq[7], want)
	}
}

// vLLM #53634, Megatron #1418, mlxcel #1324: max_position_embeddings may be
// the trained or the extended length. Nothing but the trained length enters a
// frequency, so no length is scaled twice.
func TestPitfall08MaxLengthIsNotScaledTwice(t *testing.T) {
	var first rope.Method
	for _, longest := range []string{"32768", "131072"} {
		c := parse(t, `{"head_dim":128,"rope_theta":1e6,"max_position_embeddings":`+longest+`,
			"rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":32768}}`)
		if first == nil {
			first = c.Methods[""]
		}
		if !reflect.DeepEqual(c.Methods[""], first) {
			t.Errorf("max_position_embeddings %s changes the method to %+v", longest, c.Methods[""])
		}
	}
	c := parse(t, `{"head_dim":128,"rope_theta":1e4,"max_position_embeddings":8192,
		"rope_scaling":{"type":"dynamic","factor":2,"original_max_position_embeddings":4096}}`)
	if got := c.Methods[""].(rope.DynamicNTK).MaxLength; got != 4096 {
		t.Errorf("trained length is %d, want 4096", got)
	}
}

// huggingface/transformers #25199, flash-attention #288, TinyLlama #24,
// llama.cpp #3018, #7481, nanotron #427: the wrong pairing, or rotation twice,
// gives other scores.
func TestPitfall09PairingAndDoubleRotation(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 9))
	q, k := random(rng, 1, 1, 64), random(rng, 16, 1, 64)
	half := lower(t, rope.Default{Base: rope.Base{HeadDim: 64}}, 0)
	next := lower(t, rope.Default{Base: rope.Base{HeadDim: 64, Layout: kernel.Interleaved}}, 0)
	if half.Layout != kernel.HalfSplit || next.Layout != kernel.Interleaved {
		t.Fatal("Layout is not passed on")
	}
	p, last := rope.Text(count(0, 16)), rope.Text([]int32{15})
	want := scores(t, apply(t, q, last, half), apply(t, k, p, half))
	if d := furthest(want, scores(t, apply(t, q, last, next), apply(t, k, p, next))); d < 1 {
		t.Errorf("the other pairing scores within %v", d)
	}
	twice := scores(t, apply(t, apply(t, q, last, half), last, half), apply(t, apply(t, k, p, half), p, half))
	if d := furthest(want, twice); d < 1 {
		t.Errorf("double rotation scores within %v", d)
	}
}

// huggingface/transformers #35350, #33691, #31581, streaming-llm #73: after
// eviction, all positions are those of the text or all are ranks in the cache.
// Shift takes keys from one to the other; a mixture scores otherwise.
func TestPitfall10EvictedPositions(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 10))
	r := lower(t, rope.YaRN{Base: rope.Base{HeadDim: 64}, Factor: 4, OriginalLength: 1024}, 0)
	kept := []int32{0, 1, 2, 3, 100, 101, 102, 103}
	ranks, delta := count(0, 8), make([]int32, 8)
	for i := range kept {
		delta[i] = ranks[i] - kept[i]
	}
	q, k := random(rng, 1, 1, 64), random(rng, 8, 1, 64)
	cached := apply(t, k, rope.Text(kept), r)
	want := scores(t, apply(t, q, rope.Text([]int32{8}), r), apply(t, k, rope.Text(ranks), r))
	got := scores(t, apply(t, q, rope.Text([]int32{8}), r), shift(t, cached, rope.Text(delta), r))
	if d := furthest(want, got); d > 1e-4 {
		t.Errorf("renumbered keys are off by %v", d)
	}
	if d := furthest(want, scores(t, apply(t, q, rope.Text([]int32{8}), r), cached)); d < 1 {
		t.Errorf("mixed positions score within %v", d)
	}
}

// llama.cpp #4889, #13870, #19928: moving cached keys with a partial rotation,
// several axes, or an attention factor.
func TestPitfall11ShiftOfPartialAndMultiAxisKeys(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 11))
	for _, b := range []rope.Base{
		{HeadDim: 64, RotaryDim: 16}, {HeadDim: 64, RotaryDim: 16, Layout: kernel.Interleaved},
		{HeadDim: 64, MRoPE: rope.MRoPE{Sections: [3]int{8, 12, 12}}},
		{HeadDim: 64, Partial: .5, MRoPE: rope.MRoPE{Sections: [3]int{6, 5, 5}, Interleaved: true}},
	} {
		r := lower(t, rope.YaRN{Base: b, Factor: 16, OriginalLength: 1024}, 0)
		if r.Factor == 1 {
			t.Fatal("no attention factor to apply twice")
		}
		x := random(rng, 3, 2, 64)
		old := rope.Positions{{50, 51, 52}, {50, 50, 51}, {50, 51, 50}}
		moved := rope.Positions{{40, 41, 42}, {40, 40, 41}, {40, 41, 40}}
		got := shift(t, apply(t, x, old, r), rope.Text([]int32{-10, -10, -10}), r)
		if d := distance(got, apply(t, x, moved, r)); d > 2e-6 {
			t.Errorf("%+v: moved keys are off by %v", b, d)
		}
		for i, v := range got.F32s() {
			if i%64 >= r.Dim && v != x.F32s()[i] {
				t.Fatalf("%+v: feature %d behind the rotation changed", b, i%64)
			}
		}
	}
}

// State kept between calls under one name and read under another, and
// "truncate" read from the flat dictionary while it stands in a nested one.
// Methods have no state, and each layer type its own.
func TestPitfall12NoStateAndNestedParameters(t *testing.T) {
	long := ones(32)
	long[0] = 9
	for _, m := range []rope.Method{
		rope.DynamicNTK{Base: rope.Base{HeadDim: 64}, Factor: 2, MaxLength: 128},
		rope.LongRoPE{Base: rope.Base{HeadDim: 64}, Short: ones(32), Long: long, OriginalLength: 128, Factor: 4},
		rope.DynamicYaRN{Base: rope.Base{HeadDim: 64}, OriginalLength: 128},
	} {
		short := lower(t, m, 64)
		if reflect.DeepEqual(lower(t, m, 512), short) {
			t.Errorf("%s: length changes nothing", m.Name())
		}
		if !reflect.DeepEqual(lower(t, m, 64), short) {
			t.Errorf("%s: a long step changed a short one after it", m.Name())
		}
		// what a caller does to a Rotation does not reach the method
		r := lower(t, m, 64)
		clear(r.InvFreq)
		if !reflect.DeepEqual(lower(t, m, 64), short) {
			t.Errorf("%s: shares frequencies with its Rotation", m.Name())
		}
	}
	c := parse(t, `{"head_dim":64,"rope_parameters":{
		"full_attention":{"rope_type":"yarn","rope_theta":150000,"factor":32,"original_max_position_embeddings":4096,"truncate":false},
		"sliding_attention":{"rope_type":"yarn","rope_theta":10000,"factor":32,"original_max_position_embeddings":4096}}}`)
	full, sliding := c.Methods[rope.FullAttention].(rope.YaRN), c.Methods[rope.SlidingAttention].(rope.YaRN)
	if !full.NoTruncate || sliding.NoTruncate || full.Theta != 150000 || sliding.Theta != 10000 {
		t.Errorf("layer types are %+v and %+v", full, sliding)
	}
}
