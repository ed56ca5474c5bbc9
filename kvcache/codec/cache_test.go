package codec

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

// loss stores random rows in a cache, one entry in a hundred of them large, and
// gives the relative L2 error of keys and of values of layer 0, and how many pages
// were coded.
func loss(t *testing.T, apply func(*kvcache.Config)) (key, value float64, coded int) {
	t.Helper()
	backend := cpu.New(cpu.Options{Workers: 1})
	defer backend.Close()
	c := config()
	apply(&c)
	nuqLevels(t, &c)
	cache, err := kvcache.New(backend, c)
	if err != nil {
		t.Fatal(err)
	}
	const tokens = 64 + kiviResidual
	id := cache.NewSequence()
	slots, err := cache.Extend([]kvcache.ID{id}, []int{tokens}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	var rows [2]tensor.View
	for i := range rows {
		rows[i] = tensor.New(tensor.F32, tokens, 2, 64)
		x := rows[i].F32s()
		for j := range x {
			if x[j] = float32(r.NormFloat64()); r.IntN(100) == 0 {
				x[j] *= 10
			}
		}
	}
	for layer := range c.Layers {
		if err := cache.Append(layer, slots, rows[0], rows[1]); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cache.Extend([]kvcache.ID{id}, []int{0}, nil); err != nil {
		t.Fatal(err)
	}
	k, v, err := cache.Gather(0, id)
	if err != nil {
		t.Fatal(err)
	}
	lost := func(got, want *tensor.View) float64 {
		var sum, all float64
		for i := range want.Shape[0] {
			for h := range want.Shape[1] {
				for d := range want.Shape[2] {
					x := float64(want.At(i, h, d))
					e := float64(got.At(i, h, d)) - x
					sum, all = sum+e*e, all+x*x
				}
			}
		}
		return math.Sqrt(sum / all)
	}
	return lost(&k, &rows[0]), lost(&v, &rows[1]), cache.Stats().CodedUsed
}

// TestLoss: what each codec loses on a cache, and the order of the papers: more
// bits less, GEAR less than what it wraps, outliers less.
func TestLoss(t *testing.T) {
	type lost struct{ key, value float64 }
	all := map[string]lost{}
	for _, e := range Codecs() {
		if c := config(); e.Name == "qjl" || e.Name == "palu" {
			if e.Apply(&c); c.HeadDim == config().HeadDim || e.Bases == nil {
				t.Errorf("%s: rows are held as they are", e.Name)
			}
			continue // what is held are no rows of the model
		}
		k, v, coded := loss(t, e.Apply)
		c := config()
		e.Apply(&c)
		if want := (64 + kiviResidual - c.Residual) / c.PageSize; c.Coded() && coded != min(want, c.CodedPages) || !c.Coded() && coded != 0 {
			t.Errorf("%s: %d coded pages", e.Name, coded)
		}
		all[e.Name] = lost{k, v}
		most := 0.6
		if e.Mixed != nil {
			most = 0.65 // two bits for all: nobody named the important pages
		}
		if e.Name == "asymkv" {
			most = 1.5 // one bit between the least and the largest is worse than zeros here
		}
		if !(k > 0 && k < most && v > 0 && v < most) {
			t.Errorf("%s loses %.4f of keys and %.4f of values", e.Name, k, v)
		}
	}
	k, v, _ := loss(t, func(c *kvcache.Config) {
		KVQuant(c)
		c.Coding.Key.Outliers, c.Coding.Value.Outliers = 0, 0
	})
	all["kvquant without outliers"] = lost{k, v}
	for _, pair := range [][2]string{{"f16", "bf16"}, {"bf16", "fp8"}, {"int8", "int4"}, {"kivi4", "kivi2"}, {"kivi4", "int4"}, {"gear", "kivi4"}, {"kvquant", "kvquant without outliers"}} {
		if a, b := all[pair[0]], all[pair[1]]; a.key >= b.key || a.value >= b.value {
			t.Errorf("%s loses %.4f, %s %.4f", pair[0], a, pair[1], b)
		}
	}
	k, v, _ = loss(t, func(c *kvcache.Config) {
		coded(kernel.Int4, kiviResidual)(c)
		GEAR{}.Apply(c)
	})
	if got := (lost{k, v}); got != all["kivi4"] {
		t.Errorf("GEAR of no rank and no outliers loses %v, KIVI %v", got, all["kivi4"])
	}
}
