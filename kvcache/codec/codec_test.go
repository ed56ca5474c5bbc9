package codec

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

func config() kvcache.Config {
	return kvcache.Config{Layers: 4, Pages: 16, PageSize: 16, KVHeads: 2, HeadDim: 64, ValueDim: 64, DType: tensor.F32, CodedPages: 8}
}

// nuqLevels are the tables of a Config whose codings have them.
func nuqLevels(t *testing.T, c *kvcache.Config) {
	t.Helper()
	if !c.Coding.Key.Levels || c.Levels != nil {
		return
	}
	table, err := NUQ(c.Coding.Key.Codec, []float32{0, 3, 3.5, 15}, nil)
	if err != nil {
		t.Fatal(err)
	}
	v := tensor.FromF32(append(slices.Clone(table), table...), 2, int64(len(table)))
	for range c.Layers {
		c.Levels = append(c.Levels, kvcache.Levels{Key: v, Value: v})
	}
}

// TestEveryCodecMakesACache, and one no larger than F32's.
func TestEveryCodecMakesACache(t *testing.T) {
	base := config()
	base.CodedPages = 0
	f32, err := kvcache.Bytes(base)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range Codecs() {
		c := config()
		e.Apply(&c)
		nuqLevels(t, &c)
		n, err := kvcache.Bytes(c)
		if err != nil {
			t.Errorf("%s: %v", e.Name, err)
			continue
		}
		whole := c
		if whole.Pages = 1; c.Coded() {
			whole.CodedPages = 16
		} else {
			whole.Pages = 16
		}
		if m, err := kvcache.Bytes(whole); err != nil || m >= f32 {
			t.Errorf("%s: %d bytes of all pages coded (and %d), F32 has %d: %v", e.Name, m, n, f32, err)
		}
		if got, err := Find(e.Name); err != nil || got.Name != e.Name {
			t.Errorf("Find(%q): %v", e.Name, err)
		}
	}
	var bad *ValueError
	if _, err := Find("int3"); !errors.As(err, &bad) {
		t.Errorf("Find(int3): %v", err)
	}
}

func TestAsymKVWidths(t *testing.T) {
	c := config()
	AsymKV{KeyLayers: 3, ValueLayers: 1}.Apply(&c)
	for i, k := range c.LayerCoding {
		if (k.Key.Codec == kernel.Int2) != (i < 3) || (k.Value.Codec == kernel.Int2) != (i < 1) {
			t.Errorf("layer %d: %v", i, k)
		}
	}
	before := slices.Clone(c.LayerCoding)
	shared := c.LayerCoding
	if (GEAR{Rank: 2}).Apply(&c); c.LayerCoding[0].Key.Rank != 2 || !slices.Equal(shared, before) {
		t.Errorf("GEAR over AsymKV: %v, its argument's slice %v", c.LayerCoding[0], shared[0])
	}
}

// TestNUQ: each level is the weighted mean of the samples nearest to it, the loss
// is below that of uniform levels, weights move levels, and
// what cannot be a sample is refused.
func TestNUQ(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	x, w := make([]float32, 2000), make([]float32, 2000)
	for i := range x {
		x[i] = float32(min(max(7.5+2*r.NormFloat64(), 0), 15))
		w[i] = float32(r.ExpFloat64())
	}
	got, err := NUQ(kernel.Int4, x, w)
	if err != nil || !slices.IsSorted(got) {
		t.Fatalf("levels %v: %v", got, err)
	}
	uniform := make([]float32, 16)
	for c := range uniform {
		uniform[c] = float32(c)
	}
	loss := func(levels []float32) (sum float64) {
		for i := range x {
			d := float64(x[i] - levels[kernel.EncodeLevel(levels, x[i], 1, 0)])
			sum += float64(w[i]) * d * d
		}
		return sum
	}
	if a, b := loss(got), loss(uniform); a >= b {
		t.Errorf("loss %g, of uniform levels %g", a, b)
	}
	var sum, weight [16]float64
	for i := range x {
		c := kernel.EncodeLevel(got, x[i], 1, 0)
		sum[c], weight[c] = sum[c]+float64(w[i])*float64(x[i]), weight[c]+float64(w[i])
	}
	for c := range got {
		if mean := sum[c] / weight[c]; weight[c] > 0 && math.Abs(mean-float64(got[c])) > 1e-3 {
			t.Errorf("level %d is %g, the mean of its samples %g", c, got[c], mean)
		}
	}
	if two, _ := NUQ(kernel.Int1, []float32{0, 0.25, 1}, []float32{1, 3, 1}); !slices.Equal(two, []float32{0.1875, 1}) {
		t.Errorf("weighted means %v", two)
	}
	var bad *ValueError
	for _, s := range []float32{-1, 16, float32(math.NaN()), float32(math.Inf(1))} {
		if _, err := NUQ(kernel.Int4, []float32{s}, nil); !errors.As(err, &bad) {
			t.Errorf("sample %g: %v", s, err)
		}
	}
	if _, err := NUQ(kernel.Int4, x, w[:1]); !errors.As(err, &bad) {
		t.Errorf("one weight: %v", err)
	}
	if _, err := NUQ(kernel.NoCodec, x, nil); !errors.As(err, &bad) {
		t.Errorf("no codec: %v", err)
	}
}
