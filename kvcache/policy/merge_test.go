package policy

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// keyed is a head with the given keys.
func keyed(rows ...[]float32) *Head {
	h := new(Head)
	h.Extend(len(rows))
	h.Key = tensor.New(tensor.F32, int64(len(rows)), int64(len(rows[0])))
	for j, r := range rows {
		for d, x := range r {
			h.Key.Set(x, int64(j), int64(d))
		}
	}
	return h
}

func sameMerges(t *testing.T, got, want []kvcache.Merge) {
	t.Helper()
	ok := len(got) == len(want)
	for i := range got {
		ok = ok && got[i].Into == want[i].Into && got[i].From == want[i].From &&
			math.Abs(float64(got[i].Key-want[i].Key)) < 1e-6 && math.Abs(float64(got[i].Value-want[i].Value)) < 1e-6
	}
	if !ok {
		t.Errorf("merges\n%v, want\n%v", got, want)
	}
}

// TestCaM: what goes is added to the values after it, and how often is its weight
// over their mean.
func TestCaM(t *testing.T) {
	h := new(Head)
	h.Extend(6)
	h.Sum = []float32{5, 0, 1, 1, 3, 1}
	got, err := CaM{Next: 2}.Merge(h, []int32{2, 3, 5}, nil)
	if err != nil {
		t.Fatal(err)
	}
	sameMerges(t, got, []kvcache.Merge{ // key 1 has no weight; key 4 only key 5 after it
		{Into: 2, From: 2, Key: 1, Value: 1}, {Into: 2, From: 0, Value: 0.5},
		{Into: 3, From: 3, Key: 1, Value: 1}, {Into: 3, From: 0, Value: 0.5},
		{Into: 5, From: 5, Key: 1, Value: 1}, {Into: 5, From: 4, Value: 1},
	})
	h = new(Head)
	h.Extend(4000)
	h.Sum = make([]float32, 4000)
	var keep []int32
	for j := range h.Sum {
		if h.Sum[j] = 0.3; j%2 == 1 {
			h.Sum[j], keep = 1, append(keep, int32(j))
		}
	}
	got, err = CaM{Next: 1, Seed: 4}.Merge(h, keep, nil)
	if err != nil {
		t.Fatal(err)
	}
	if part := float64(len(got)) / 2 / 2000; math.Abs(part-0.3) > 0.04 {
		t.Errorf("%v of the keys are merged, want 0.3", part)
	}
	again, _ := CaM{Next: 1, Seed: 4}.Merge(h, keep, nil)
	other, _ := CaM{Next: 1, Seed: 5}.Merge(h, keep, nil)
	if !slices.Equal(got, again) || slices.Equal(got, other) {
		t.Error("chance is not fixed by the seed alone")
	}
}

// TestD2O: the nearest key takes in what is near enough, by exponential weights,
// and the threshold follows.
func TestD2O(t *testing.T) {
	h := keyed([]float32{1, 0}, []float32{0, 2}, []float32{2, 0}, []float32{3, 4}, []float32{-1, 0})
	got, err := D2O{Beta: 0.5}.Merge(h, []int32{0, 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// cosines: key 2 has 1 with key 0; key 3 0.8 with key 1; key 4 0 with key 1. mean 0.6
	e, x := math.E, math.Exp(0.8)
	w := func(x float64) float32 { return float32(x) }
	sameMerges(t, got, []kvcache.Merge{
		{Into: 0, From: 0, Key: 0.5, Value: 0.5}, {Into: 0, From: 2, Key: 0.5, Value: 0.5},
		{Into: 1, From: 1, Key: w(e / (e + x)), Value: w(e / (e + x))}, {Into: 1, From: 3, Key: w(x / (e + x)), Value: w(x / (e + x))},
	})
	if h.threshold != 0 {
		t.Error("a plan that was not applied has changed the threshold")
	}
	h.applied([]int32{0, 1})
	if math.Abs(float64(h.threshold)-0.6) > 1e-6 {
		t.Errorf("threshold %v, want 0.6", h.threshold)
	}
	h = keyed([]float32{1, 0}, []float32{0.5, 0.5})
	h.threshold = 1
	got, err = D2O{Beta: 0.5}.Merge(h, []int32{0}, nil) // threshold (0.707 + 1)/2 = 0.854
	if err != nil || len(got) != 0 || math.Abs(float64(h.pending.threshold)-0.8536) > 1e-3 {
		t.Errorf("merges %v (%v), threshold %v, want none and 0.854", got, err, h.pending.threshold)
	}
}

// TestKVMerger: runs end where neighbours differ, and weights fall with distance.
func TestKVMerger(t *testing.T) {
	h := keyed([]float32{1, 0}, []float32{2, 0}, []float32{0, 1}, []float32{0, 1}, []float32{1, 0}, []float32{0, 1})
	got, err := KVMerger{Threshold: 0.75}.Merge(h, []int32{0, 3}, nil)
	if err != nil {
		t.Fatal(err)
	}
	// run 0, 1: distances 0 and 1, σ² = (1/2)²/2; run 2, 3: no distance; 4 and 5 are gone
	a := 1 / (1 + math.Exp(-4))
	sameMerges(t, got, []kvcache.Merge{
		{Into: 0, From: 0, Key: float32(a), Value: float32(a)}, {Into: 0, From: 1, Key: float32(1 - a), Value: float32(1 - a)},
		{Into: 3, From: 2, Key: 0.5, Value: 0.5}, {Into: 3, From: 3, Key: 0.5, Value: 0.5},
	})
}

// TestDMC: accumulating in steps is accumulating at once.
func TestDMC(t *testing.T) {
	one := func(external ...float32) *Sequence {
		s := NewSequence(1, 1)
		s.Extend(len(external))
		s.Heads[0].External = external
		return s
	}
	plans, err := DMC{}.Plan(one(1, -3, 2, 4, -4, -8), 0)
	if err != nil {
		t.Fatal(err)
	}
	if got := kept(plans[0]); !slices.Equal(got, []int{0, 2, 3}) {
		t.Errorf("keeps %v", got)
	}
	sameMerges(t, plans[0].Merges, []kvcache.Merge{
		{Into: 0, From: 0, Key: 0.25, Value: 0.25}, {Into: 0, From: 1, Key: 0.75, Value: 0.75},
		{Into: 3, From: 3, Key: 0.25, Value: 0.25}, {Into: 3, From: 4, Key: 0.25, Value: 0.25}, {Into: 3, From: 5, Key: 0.5, Value: 0.5},
	})
	s := one(4, -4)
	plans, err = DMC{}.Plan(s, 0)
	if err := errors.Join(err, s.Applied(plans)); err != nil {
		t.Fatal(err)
	}
	s.Extend(1)
	s.Heads[0].External[1] = -8
	if plans, err = (DMC{}).Plan(s, 0); err != nil {
		t.Fatal(err)
	}
	sameMerges(t, plans[0].Merges, []kvcache.Merge{{Into: 0, From: 0, Key: 0.5, Value: 0.5}, {Into: 0, From: 1, Key: 0.5, Value: 0.5}})
}

// TestRazorAttention: one token stands for all that went, and for what went before.
func TestRazorAttention(t *testing.T) {
	s := NewSequence(1, 2)
	p := RazorAttention{Retrieval: []bool{true, false}, Streaming: Window{Sinks: 1, Recent: 2}}
	step := func(tokens int) []kvcache.Plan {
		s.Extend(tokens)
		plans, err := p.Plan(s, 0)
		if err == nil {
			err = s.Applied(plans)
		}
		if err != nil {
			t.Fatal(err)
		}
		return plans
	}
	plans := step(7)
	if got := kept(plans[1]); !slices.Equal(got, []int{0, 1, 5, 6}) || len(plans[0].Keep) != 7 || len(plans[0].Merges) != 0 {
		t.Errorf("keeps %v and %v", plans[0].Keep, got)
	}
	if !slices.Equal(s.Heads[1].Count, []float32{1, 4, 1, 1}) || s.Heads[0].Count != nil {
		t.Errorf("counts %v and %v", s.Heads[0].Count, s.Heads[1].Count)
	}
	plans = step(1) // the mean of four tokens and one
	sameMerges(t, plans[1].Merges, []kvcache.Merge{{Into: 1, From: 1, Key: 0.8, Value: 0.8}, {Into: 1, From: 2, Key: 0.2, Value: 0.2}})
	if !slices.Equal(s.Heads[1].Count, []float32{1, 5, 1, 1}) || !slices.Equal(s.Heads[1].Positions, []int32{0, 1, 6, 7}) {
		t.Errorf("counts %v of positions %v", s.Heads[1].Count, s.Heads[1].Positions)
	}
	if b := s.Heads[1].Bias(nil); len(b) != 4 || b[0] != 0 || math.Abs(float64(b[1])+math.Log(5)) > 1e-6 {
		t.Errorf("bias %v", b)
	}
}

// TestThinK: the channels of the largest products of norms stay.
func TestThinK(t *testing.T) {
	query, key := tensor.New(tensor.F32, 3, 2, 4), tensor.New(tensor.F32, 5, 4)
	for d, x := range []float32{1, 3, 0.5, 2} {
		for i := range int64(2) {
			query.Set(100, 0, i, int64(d)) // too old to count
			query.Set(x, 1+i, i, int64(d))
		}
		key.Set(6-float32(d), int64(d), int64(d))
	}
	got, err := ThinK{Keep: 2, Queries: 2}.Channels(query, key) // 1·36, 9·25, ¼·16, 4·9: of 36 and 36 the later
	if err != nil || !slices.Equal(got, []int32{1, 3}) {
		t.Fatalf("channels %v (%v), want 1 and 3", got, err)
	}
	taken, err := TakeChannels(query, got)
	if err != nil || taken.Shape != [4]int64{3, 2, 2} || taken.At(1, 0, 0) != 3 || taken.At(1, 0, 1) != 2 || taken.At(0, 1, 1) != 100 {
		t.Errorf("took %v (%v): %v", &taken, err, taken.F32s())
	}
}

// TestMiniCache: layers that agree in direction come back as they were; kept rows do
// in any case; what is stored is about half.
func TestMiniCache(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 5))
	a, b := randomRows(rng, 200, 32), tensor.New(tensor.F32, 200, 32)
	for j := range int64(200) {
		for d := range int64(32) {
			x := float32(j%7+1) * a.At(j, d)
			if j == 9 {
				x = float32(rng.NormFloat64())
			}
			b.Set(x, j, d)
		}
	}
	for _, d := range []int64{0, 5} {
		a.Set(0, 3, d) // stays nearly parallel to what it was
	}
	p, err := MiniCache{T: 0.6, Keep: 0.05}.Merge(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(p.Kept, []int32{9}) {
		t.Errorf("kept rows %v, want 9", p.Kept)
	}
	if whole := int64(8 * 200 * 32); p.Bytes() > whole*6/10 {
		t.Errorf("%d bytes for two layers of %d", p.Bytes(), whole)
	}
	for layer, v := range []*tensor.View{&a, &b} {
		got, err := p.Restore(layer)
		if err != nil {
			t.Fatal(err)
		}
		for j := range int64(200) {
			for d := range int64(32) {
				if e := math.Abs(float64(got.At(j, d) - v.At(j, d))); e > 1e-4*(1+math.Abs(float64(v.At(j, d)))) && j != 3 {
					t.Fatalf("layer %d row %d channel %d: %v, want %v", layer, j, d, got.At(j, d), v.At(j, d))
				}
			}
			if n := norm2(row(&got, int(j))); math.Abs(n-norm2(row(v, int(j)))) > 1e-4*n {
				t.Fatalf("layer %d row %d has norm %v, want %v", layer, j, n, norm2(row(v, int(j))))
			}
		}
	}
	x, y := []float64{1, 0}, []float64{0, 1}
	for _, part := range []float64{0, 0.25, 1} {
		e, angle := slerp(x, y, part)
		if math.Abs(e[0]-math.Cos(part*math.Pi/2)) > 1e-9 || math.Abs(angle-math.Pi/2) > 1e-9 {
			t.Errorf("slerp %v: %v, angle %v", part, e, angle)
		}
	}
}
