package attention_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// reference computes an input in float64 by the formulas of the package
// comments, pair by pair. It shares no code with the library but the data types.
type reference struct {
	input
	rotation kernel.Rotation // Dim 0: none
	terms    []attention.Term
	scale    float64
}

func newReference(t testing.TB, in input) *reference {
	t.Helper()
	ref := &reference{input: in, scale: in.config.Scale}
	if ref.scale == 0 {
		ref.scale = 1 / math.Sqrt(float64(in.config.HeadDim))
	}
	length := in.step.Length
	for _, n := range in.step.KeyLens {
		if in.step.Length == 0 {
			length = max(length, n, 1)
		}
	}
	position := in.config.Position
	if position == nil {
		position = attention.Absolute{}
	}
	ref.terms = termsOf(t, position, length)
	if in.config.Rotary != nil {
		var err error
		if ref.rotation, err = in.config.Rotary.Rotation(length); err != nil {
			t.Fatal(err)
		}
		if s := ref.rotation.ScoreScale; s != 0 {
			ref.scale *= s
		}
	}
	return ref
}

// check compares a result with the reference: relative to the largest value a
// row sees, with room for the rounding of the output type.
func (ref *reference) check(t testing.TB, got result, tolerance float64) {
	t.Helper()
	q0, k0 := 0, 0
	for s, n := range ref.step.QueryLens {
		for q := range n {
			for h := range ref.config.Heads {
				ref.checkRow(t, got, s, q0, k0, q, h, tolerance)
			}
		}
		q0, k0 = q0+n, k0+ref.step.KeyLens[s]
	}
}

func (ref *reference) checkRow(t testing.TB, got result, s, q0, k0, q, h int, tolerance float64) {
	t.Helper()
	out, lse, size := ref.row(s, q0, k0, q, h)
	rounding := 0.0
	switch ref.config.DType {
	case tensor.F16:
		rounding = 1.0 / 1024
	case tensor.BF16:
		rounding = 1.0 / 128
	}
	at := (q0+q)*got.heads + h
	what := fmt.Sprintf("sequence %d, query %d, head %d, %+v", s, q, h, ref.config)
	if g := float64(got.lse[at]); g != lse && !(math.Abs(g-lse) <= tolerance*(1+math.Abs(lse))) {
		t.Fatalf("%s: LSE is %v, want %v", what, g, lse)
	}
	for d, want := range out {
		if g := float64(got.out[at*got.dv+d]); !(math.Abs(g-want) <= tolerance*(1+size)+rounding*math.Abs(want)) {
			t.Fatalf("%s: Out[%d] is %v, want %v", what, d, g, want)
		}
	}
}

// row is Out and LSE of query q of sequence s, and the largest value it sees.
func (ref *reference) row(s, q0, k0, q, h int) (out []float64, lse, size float64) {
	keys := ref.step.KeyLens[s]
	i := keys - ref.step.QueryLens[s] + q
	g := h / (ref.config.Heads / ref.config.KVHeads)
	var scores []float64
	var at []int
	for j := range keys {
		if x, ok := ref.score(s, q0+q, k0, i, j, h, g); ok {
			scores, at = append(scores, x), append(at, k0+j)
		}
	}
	most := math.Inf(-1)
	for _, x := range scores {
		most = max(most, x)
	}
	if ref.config.Score.SinkLogit {
		most = max(most, float64(ref.scores.SinkLogit.At(int64(h))))
	}
	out = make([]float64, ref.value.Shape[2])
	if math.IsInf(most, -1) {
		return out, most, 0
	}
	total := 0.0
	for n, x := range scores {
		w := math.Exp(x - most)
		total += w
		for d := range out {
			v := float64(ref.value.At(int64(at[n]), int64(g), int64(d)))
			out[d] += w * v
			size = max(size, math.Abs(v))
		}
	}
	if ref.config.Score.SinkLogit {
		total += math.Exp(float64(ref.scores.SinkLogit.At(int64(h))) - most)
	}
	for d := range out {
		out[d] /= total
	}
	return out, most + math.Log(total), size
}

// score is s[j], and whether query index i sees key index j.
func (ref *reference) score(s, t, k0, i, j, h, g int) (float64, bool) {
	prefix := 0
	if ref.step.PrefixLens != nil {
		prefix = ref.step.PrefixLens[s]
	}
	seen := false
	for _, r := range ref.config.Mask.Regions {
		seen = seen || inRegion(r, i, j, prefix)
	}
	if ref.config.Mask.Kinds&kernel.MaskDocument != 0 && seen {
		seen = ref.step.Documents[k0+i] == ref.step.Documents[k0+j]
	}
	if !seen {
		return 0, false
	}
	for _, term := range ref.terms {
		if !inRegion(term.Region, i, j, prefix) {
			continue
		}
		x := ref.scale * ref.dot(term, t, k0+j, i, j, h, g)
		if term.Scale != 0 {
			x *= term.Scale
		}
		return ref.modify(x, k0, i, j, h), true
	}
	return 0, false
}

func (ref *reference) modify(x float64, k0, i, j, h int) float64 {
	c := &ref.config.Score
	if c.LogN > 0 && i > 0 {
		x *= max(1, math.Log(float64(i+1))/math.Log(float64(c.LogN)))
	}
	if c.SoftCap > 0 {
		x = c.SoftCap * math.Tanh(x/c.SoftCap)
	}
	if c.Slopes {
		x -= float64(ref.scores.Slopes.At(int64(h))) * math.Abs(float64(i-j))
	}
	if c.RelBias {
		at := min(max(int64(i-j)-int64(c.RelBiasStart), 0), ref.scores.RelBias.Shape[1]-1)
		x += float64(ref.scores.RelBias.At(int64(h), at))
	}
	if c.PrefixBias {
		x += float64(ref.scores.PrefixBias.At(int64(k0+i), int64(h))) - float64(ref.scores.PrefixBias.At(int64(k0+j), int64(h)))
	}
	return x
}

func inRegion(r kernel.Region, i, j, prefix int) bool {
	within := func(x int, b kernel.Range) bool {
		return (b.Lo == kernel.MinBound || x >= int(b.Lo)) && (b.Hi == kernel.MaxBound || x < int(b.Hi))
	}
	for _, c := range r.Chunk {
		if s := float64(c.Size); s > 0 && !within(int(math.Floor(float64(i)/s)-math.Floor(float64(j)/s)), c.Range) {
			return false
		}
	}
	return within(i-j, r.Diff) && within(j, r.Key) && (!r.Prefix || j < prefix)
}

// dot is the product of query t and key row, each rotated as the term says.
func (ref *reference) dot(term attention.Term, t, row, i, j, h, g int) float64 {
	switch {
	case ref.step.QueryPos != nil:
		i = int(ref.step.QueryPos[t])
	case ref.step.KeyPos != nil:
		i = int(ref.step.KeyPos[row-j+i]) // that of the query's own key
	}
	if ref.step.KeyPos != nil {
		j = int(ref.step.KeyPos[row])
	}
	q := ref.rotated(ref.query, t, h, positionOf(term.PosQ, i))
	k := ref.rotated(ref.key, row, g, positionOf(term.PosK, j))
	x := 0.0
	for d := range q {
		x += q[d] * k[d]
	}
	return x
}

// positionOf is p(x) = clamp(Slope·⌊(x mod Mod)/Div⌋ + Offset, Lo, Hi).
func positionOf(m attention.PosMap, x int) float64 {
	u := float64(x)
	if m.Mod > 0 {
		u -= float64(m.Mod) * math.Floor(u/float64(m.Mod))
	}
	if m.Div > 1 {
		u = math.Floor(u / float64(m.Div))
	}
	return math.Min(math.Max(m.Slope*u+m.Offset, m.Lo), m.Hi)
}

func (ref *reference) rotated(v tensor.View, row, head int, position float64) []float64 {
	x := make([]float64, v.Shape[2])
	for d := range x {
		x[d] = float64(v.At(int64(row), int64(head), int64(d)))
	}
	r := &ref.rotation
	for k := range r.Dim / 2 {
		a, b := k, k+r.Dim/2
		if r.Layout == kernel.Interleaved {
			a, b = 2*k, 2*k+1
		}
		sin, cos := math.Sincos(position * r.InvFreq[k])
		x[a], x[b] = r.Factor*(x[a]*cos-x[b]*sin), r.Factor*(x[b]*cos+x[a]*sin)
	}
	return x
}

func TestRandomConfigsAgainstReference(t *testing.T) {
	b := backend(t, 2)
	random(t, 60, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(2), anyMask)
		for s, n := range in.step.KeyLens { // the reference is slow
			in.step.QueryLens[s] = min(in.step.QueryLens[s], n, 6)
		}
		in.step.Length = pick(r, 0, 0, 900)
		in.fill(r)
		newReference(t, in).check(t, run(t, b, in), 2e-5)
	})
}

// A position of every kind, with positions that are not the indices.
func TestExplicitPositionsAgainstReference(t *testing.T) {
	b := backend(t, 2)
	random(t, 30, func(t *testing.T, r *rand.Rand) {
		in := randomInput(r, 1+r.IntN(2), anyMask)
		in.config.HeadDim, in.config.Rotary = 8, plain{dim: 6}
		for s, n := range in.step.KeyLens {
			in.step.QueryLens[s] = min(in.step.QueryLens[s], n, 6)
		}
		in.fill(r)
		if r.IntN(3) > 0 {
			for range sum(in.step.KeyLens) {
				in.step.KeyPos = append(in.step.KeyPos, r.Int32N(5000))
			}
		}
		if r.IntN(3) > 0 {
			for range sum(in.step.QueryLens) {
				in.step.QueryPos = append(in.step.QueryPos, r.Int32N(5000)-50)
			}
		}
		newReference(t, in).check(t, run(t, b, in), 2e-5)
	})
}
