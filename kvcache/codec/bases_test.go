package codec

import (
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/longctx/longctx/cpu"
	"github.com/longctx/longctx/kvcache"
	"github.com/longctx/longctx/tensor"
)

func normal(r *rand.Rand, shape ...int64) tensor.View {
	v := tensor.New(tensor.F32, shape...)
	for i := range v.F32s() {
		v.F32s()[i] = float32(r.NormFloat64())
	}
	return v
}

func projected(t *testing.T, x, basis tensor.View) tensor.View {
	t.Helper()
	y, err := Project(x, basis)
	if err != nil {
		t.Fatal(err)
	}
	return y
}

func dot(x, y tensor.View, i, j, h int64) (sum float64) {
	for d := range x.Shape[2] {
		sum += float64(x.At(i, h, d)) * float64(y.At(j, h, d))
	}
	return sum
}

// TestProject: a basis of each group of heads, any strides and types, in float64.
func TestProject(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	x, b := normal(r, 5, 6, 7), normal(r, 3, 4, 7).Swap(1, 2)
	y := projected(t, x.Slice(0, 1, 4), b)
	for i := range int64(3) {
		for h := range int64(6) {
			for d := range int64(4) {
				want := 0.0
				for k := range int64(7) {
					want += float64(x.At(i+1, h, k)) * float64(b.At(h/2, k, d))
				}
				if got := float64(y.At(i, h, d)); math.Abs(got-want) > 1e-5 {
					t.Fatalf("row %d, head %d, feature %d is %v, want %v", i, h, d, got, want)
				}
			}
		}
	}
	if got := projected(t, x, tensor.View{}); !slices.Equal(got.F32s(), x.F32s()) {
		t.Error("no basis changes rows")
	}
	for _, bad := range []tensor.View{normal(r, 4, 7, 2), normal(r, 1, 6, 2), normal(r, 7, 2), tensor.New(tensor.F16, 1, 7, 2)} {
		var v *ValueError
		if _, err := Project(x, bad); !errors.As(err, &v) {
			t.Errorf("a basis %v: %v, want a ValueError", &bad, err)
		}
	}
}

// TestBasesKeepAttention: through whole bases, scores and outputs are those of the
// rows as they are.
func TestBasesKeepAttention(t *testing.T) {
	const dim, valueDim = 16, 8
	r := rand.New(rand.NewPCG(2, 2))
	q, k, v := normal(r, 9, 2, dim), normal(r, 9, 2, dim), normal(r, 9, 2, valueDim)
	key, err := Principal(k.F32s(), dim, dim)
	if err != nil {
		t.Fatal(err)
	}
	value, err := Principal(v.F32s(), valueDim, valueDim)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]Bases{
		"hadamard": HadamardBases(dim, valueDim), "whole palu": Palu{dim, valueDim}.Bases(dim, valueDim), "principal": Orthogonal(key, value),
	} {
		pq, pk := projected(t, q, b.Query), projected(t, k, b.Key)
		back := projected(t, projected(t, v, b.Value), b.Out)
		for i := range int64(9) {
			for h := range int64(2) {
				if got, want := dot(pq, pk, i, 8-i, h), dot(q, k, i, 8-i, h); math.Abs(got-want) > 1e-4 {
					t.Errorf("%s: score %v, want %v", name, got, want)
				}
				for d := range int64(valueDim) {
					if got, want := back.At(i, h, d), v.At(i, h, d); math.Abs(float64(got-want)) > 1e-4 {
						t.Errorf("%s: output %v, want %v", name, got, want)
					}
				}
			}
		}
	}
}

// TestHadamardBases: they are what Hadamard computes.
func TestHadamardBases(t *testing.T) {
	x := normal(rand.New(rand.NewPCG(3, 3)), 4, 1, 32)
	y := projected(t, x, HadamardBases(32, 2).Key)
	if err := Hadamard(x.F32s(), 32); err != nil {
		t.Fatal(err)
	}
	for i, want := range x.F32s() {
		if math.Abs(float64(y.F32s()[i]-want)) > 1e-5 {
			t.Fatalf("feature %d is %v, want %v", i, y.F32s()[i], want)
		}
	}
}

// TestPrincipal: rows of few dimensions lose nothing, columns are orthonormal, and
// others lose less than by leaving features out.
func TestPrincipal(t *testing.T) {
	const dim, rank = 12, 4
	r := rand.New(rand.NewPCG(4, 4))
	thin := projected(t, normal(r, 50, 1, rank), normal(r, 1, rank, dim))
	lost := func(x, basis tensor.View) float64 {
		back := projected(t, projected(t, x, basis), basis.Swap(1, 2))
		sum, all := 0.0, 0.0
		for i, v := range x.F32s() {
			e := float64(v - back.F32s()[i])
			sum, all = sum+e*e, all+float64(v)*float64(v)
		}
		return sum / all
	}
	b, err := Principal(thin.F32s(), dim, rank)
	if err != nil {
		t.Fatal(err)
	}
	if x := lost(thin, b); x > 1e-9 {
		t.Errorf("rows of rank %d lose %v", rank, x)
	}
	for i := range int64(rank) {
		for j := range int64(rank) {
			sum := 0.0
			for d := range int64(dim) {
				sum += float64(b.At(0, d, i)) * float64(b.At(0, d, j))
			}
			if want := map[bool]float64{true: 1}[i == j]; math.Abs(sum-want) > 1e-5 {
				t.Errorf("columns %d and %d have product %v", i, j, sum)
			}
		}
	}
	full := projected(t, normal(r, 60, 1, dim), normal(r, 1, dim, dim))
	if b, err = Principal(full.F32s(), dim, rank); err != nil {
		t.Fatal(err)
	}
	if best, first := lost(full, b), lost(full, Palu{rank, rank}.Bases(dim, dim).Key); !(best > 0 && best < first) {
		t.Errorf("principal components lose %v, the first features %v", best, first)
	}
	for _, rank := range []int{0, dim + 1} {
		if _, err := Principal(full.F32s(), dim, rank); err == nil {
			t.Errorf("rank %d: no error", rank)
		}
	}
}

// TestQJL: the keys that a cache gives back are signs times lengths, and the product
// with a query is that of the keys themselves in the mean over S.
func TestQJL(t *testing.T) {
	const dim, trials = 16, 300
	r := rand.New(rand.NewPCG(5, 5))
	q, k := normal(r, 1, 1, dim), normal(r, 16, 1, dim)
	backend := cpu.New(cpu.Options{Workers: 1})
	defer backend.Close()
	var sum, squares [16]float64
	for seed := range uint64(trials) {
		qjl := QJL{Sketch: 4, Seed: seed}
		c := kvcache.Config{Layers: 1, Pages: 10, PageSize: 16, KVHeads: 1, HeadDim: dim, ValueDim: 16, DType: tensor.F32, CodedPages: 2}
		qjl.Apply(&c)
		c.Residual = 0
		b := qjl.Bases(dim, 16)
		sketch := projected(t, k, b.Key)
		got := stored(t, backend, c, sketch)
		asked := projected(t, q, b.Query)
		for j := range int64(16) {
			rms := 0.0
			for d := range int64(4 * dim) {
				rms += float64(sketch.At(j, 0, d)) * float64(sketch.At(j, 0, d)) / (4 * dim)
			}
			for d := range int64(4 * dim) {
				want := math.Copysign(math.Sqrt(rms*math.Pi/2), float64(sketch.At(j, 0, d)))
				if x := float64(got.At(j, 0, d)); math.Abs(x-want) > 2e-3*math.Abs(want) {
					t.Fatalf("seed %d: key %d, feature %d of its sketch is %v, want %v", seed, j, d, x, want)
				}
			}
			x := dot(asked, got, 0, j, 0)
			sum[j], squares[j] = sum[j]+x, squares[j]+x*x
		}
	}
	for j := range sum {
		mean := sum[j] / trials
		deviation := math.Sqrt((squares[j]/trials - mean*mean) / trials)
		want := dot(q, k, 0, int64(j), 0)
		if math.Abs(mean-want) > 4.5*deviation+math.Abs(want)/(4*dim) {
			t.Errorf("key %d: the mean product is %v ± %v, want %v", j, mean, deviation, want)
		}
	}
}

// stored appends keys to a cache, has them coded and gives them back.
func stored(t *testing.T, backend *cpu.Backend, c kvcache.Config, k tensor.View) tensor.View {
	t.Helper()
	cache, err := kvcache.New(backend, c)
	if err != nil {
		t.Fatal(err)
	}
	id := cache.NewSequence()
	slots, err := cache.Extend([]kvcache.ID{id}, []int{int(k.Shape[0])}, nil)
	if err == nil {
		err = cache.Append(0, slots, k, tensor.New(tensor.F32, k.Shape[0], 1, int64(c.ValueDim)))
	}
	if err == nil {
		_, err = cache.Extend([]kvcache.ID{id}, []int{0}, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	if n := cache.Stats().CodedUsed; n == 0 {
		t.Fatal("no page was coded")
	}
	key, _, err := cache.Gather(0, id)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestSalient: by sums, and by means over the queries that see a key.
func TestSalient(t *testing.T) {
	weights := []float32{4, 4, 3, 3, 1, 1, 2, 2, 9}
	queries := []float32{8, 8, 6, 6, 1, 1, 4, 4, 1}
	for _, x := range []struct {
		m    Mixed
		want []int
	}{
		{Mixed{Part: 0.5}, []int{0, 1}}, {Mixed{Part: 0.5, Mean: true}, []int{0, 2}}, {Mixed{Part: 0}, []int{}}, {Mixed{Part: 1}, []int{0, 1, 2, 3}}, {Mixed{Part: 0.3}, []int{0, 1}},
	} {
		if got, err := x.m.Salient(weights, queries, 2); err != nil || !slices.Equal(got, x.want) {
			t.Errorf("%+v: pages %v (%v), want %v", x.m, got, err, x.want)
		}
	}
	if _, err := (Mixed{}).Salient(weights, queries[1:], 2); err == nil {
		t.Error("fewer queries than keys: no error")
	}
}
