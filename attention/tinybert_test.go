package attention_test

import (
	"errors"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/longctx/longctx/attention"
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Encoders of TinyBERT: 12 heads of 26 features, which no tile divides, and a
// batch of short sequences of which every query sees every key.
func TestEncoderOfHeadsOf26Features(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(41, 42))
	for _, policy := range []kernel.Policy{kernel.Exact, kernel.Fast} {
		lens := []int{5, 64, 1, 128, 17, 63}
		in := input{config: attention.Config{Heads: 12, KVHeads: 12, HeadDim: 26, Mask: attention.Bidirectional(), Policy: policy}, step: attention.Step{QueryLens: lens, KeyLens: lens}}
		in.fill(r)
		got := run(t, b, in)
		row := 0
		for _, n := range lens {
			for h := range int64(12) {
				for i := range n {
					x, sum := make([]float64, n), 0.0
					for j := range n {
						for d := range int64(26) {
							x[j] += float64(in.query.At(int64(row+i), h, d)) * float64(in.key.At(int64(row+j), h, d))
						}
						x[j] = math.Exp(x[j] / math.Sqrt(26))
						sum += x[j]
					}
					at := (row+i)*12 + int(h)
					if d := math.Abs(float64(got.lse[at]) - math.Log(sum)); !(d < 1e-5) {
						t.Fatalf("%v: LSE of query %d of %d, head %d: %v, want %v", policy, i, n, h, got.lse[at], math.Log(sum))
					}
					for d := range int64(26) {
						o := 0.0
						for j := range n {
							o += x[j] / sum * float64(in.value.At(int64(row+j), h, d))
						}
						if g := float64(got.out[at*26+int(d)]); !(math.Abs(g-o) < 1e-5) {
							t.Fatalf("%v: Out of query %d of %d, head %d, feature %d: %v, want %v", policy, i, n, h, d, g, o)
						}
					}
				}
			}
			row += n
		}
		// what else is in the batch changes nothing
		alone := in.clone()
		alone.step.QueryLens, alone.step.KeyLens = []int{128}, []int{128}
		alone.query, alone.key, alone.value = in.query.Slice(0, 70, 198), in.key.Slice(0, 70, 198), in.value.Slice(0, 70, 198)
		if policy == kernel.Exact {
			sameBits(t, "a sequence alone", run(t, b, alone), got.rows(70, 198))
		}
	}
}

// newPair is a student with heads of 26 features and a teacher with heads of 64.
func newPair(r *rand.Rand, heads int, lens []int) *attention.ScorePair {
	n, h := int64(sum(lens)), int64(heads)
	return &attention.ScorePair{
		Student:   kernel.ScoreSide{Query: normal(r, tensor.F32, n, h, 26), Key: normal(r, tensor.F32, n, h, 26)},
		Teacher:   kernel.ScoreSide{Query: normal(r, tensor.F32, n, h, 64), Key: normal(r, tensor.F32, n, h, 64)},
		QueryLens: lens,
	}
}

// The published code, in float64: scores of padded sequences with −10000 added to
// those of padded keys, those of at most −100 set to 0, and the mean of all squares.
// The rows of padded queries are those of the pair.
func published(p *attention.ScorePair, padded int) float64 {
	heads, total, row := p.Student.Query.Shape[1], 0.0, int64(0)
	firstKey := int64(0)
	for s := range p.QueryLens {
		for h := range heads {
			for i := range int64(padded) {
				for j := range int64(padded) {
					var score [2]float64
					for side, x := range []kernel.ScoreSide{p.Student, p.Teacher} {
						dim := x.Query.Shape[2]
						if j >= int64(p.KeyLens[s]) {
							score[side] = -10000
						} else {
							for d := range dim {
								score[side] += float64(x.Query.At(row+i, h, d)) * float64(x.Key.At(firstKey+j, h, d)) / math.Sqrt(float64(dim))
							}
						}
						if score[side] <= -100 {
							score[side] = 0
						}
					}
					total += (score[0] - score[1]) * (score[0] - score[1])
				}
			}
		}
		row, firstKey = row+int64(padded), firstKey+int64(p.KeyLens[s])
	}
	return total / (float64(len(p.QueryLens)) * float64(heads) * float64(padded) * float64(padded))
}

func TestTinyBERTAgreesWithThePublishedCode(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(43, 44))
	const padded = 20
	p := newPair(r, 3, []int{padded, padded, padded})
	p.KeyLens = []int{20, 7, 1}
	for _, side := range []*kernel.ScoreSide{&p.Student, &p.Teacher} {
		side.Key = side.Key.Slice(0, 0, 28)
		x := side.Key.F32s()
		for i := range x[:len(x)/5] {
			x[i] *= 60 // some scores of real keys are below −100
		}
	}
	got, err := attention.TinyBERT{ZeroBelow: -100, Padded: padded}.Loss(b, p)
	if err != nil {
		t.Fatal(err)
	}
	if want := published(p, padded); math.Abs(got/want-1) > 1e-5 {
		t.Errorf("loss %v, want %v", got, want)
	}
	without, err := attention.TinyBERT{Padded: padded}.Loss(b, p)
	if err != nil || without < 1.1*got {
		t.Errorf("loss %v with all scores, %v without those below −100: %v", without, got, err)
	}
}

// Without padding the mean is over the pairs there are, and what the taps say.
func TestTinyBERTIsTheDistanceOfScores(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(45, 46))
	lens := []int{3, 70, 1}
	p := newPair(r, 2, lens)
	got, err := attention.TinyBERT{}.Loss(b, p)
	if err != nil {
		t.Fatal(err)
	}
	pairs := int64(9 + 4900 + 1)
	taps := [2]tensor.View{}
	for i, side := range []kernel.ScoreSide{p.Student, p.Teacher} {
		taps[i] = tensor.New(tensor.F32, 2, pairs)
		if err := attention.Scores(b, side, lens, nil, taps[i]); err != nil {
			t.Fatal(err)
		}
		// the last query of the second sequence and its first key
		x := 0.0
		for d := range side.Query.Shape[2] {
			x += float64(side.Query.At(72, 1, d)) * float64(side.Key.At(3, 1, d)) / math.Sqrt(float64(side.Query.Shape[2]))
		}
		if got := float64(taps[i].At(1, 9+69*70)); math.Abs(got-x) > 1e-5 {
			t.Errorf("score %v, want %v", got, x)
		}
	}
	want := 0.0
	for i, x := range taps[0].F32s() {
		d := float64(x) - float64(taps[1].F32s()[i])
		want += d * d / float64(2*pairs)
	}
	if math.Abs(got/want-1) > 1e-6 {
		t.Errorf("loss %v, want %v", got, want)
	}
	wantError(t, "a small tap", attention.Scores(b, p.Student, lens, nil, tensor.New(tensor.F32, 2, pairs-1)), "attention: ", "Out")
	wantError(t, "lens", attention.Scores(b, p.Student, lens, []int{1}, taps[0]), "attention: ", "1 KeyLens")
	p.Student = p.Teacher
	if same, err := (attention.TinyBERT{}).Loss(b, p); err != nil || same != 0 {
		t.Errorf("a student like its teacher has the loss %v, %v", same, err)
	}
}

// The gradients are the differences of the loss in the direction of random steps.
func TestTinyBERTGradients(t *testing.T) {
	b := backend(t, 2)
	r := rand.New(rand.NewPCG(47, 48))
	for _, m := range []attention.TinyBERT{{}, {ZeroBelow: -2, Padded: 80}} {
		lens := []int{6, 80, 2}
		p := newPair(r, 4, lens)
		p.Student.Key = normal(r, tensor.F32, 88, 2, 26) // grouped heads
		dq, dk := tensor.New(tensor.F32, 88, 4, 26), tensor.New(tensor.F32, 88, 2, 26)
		poison(dq)
		poison(dk)
		const dLoss = 3.0
		with, err := m.Gradients(b, p, dLoss, dq, dk)
		if err != nil {
			t.Fatal(err)
		}
		if without, err := m.Loss(b, p); err != nil || without != with {
			t.Errorf("loss %v with gradients, %v without: %v", with, without, err)
		}
		for range 4 {
			sq, sk := normal(r, tensor.F32, 88, 4, 26), normal(r, tensor.F32, 88, 2, 26)
			want := 0.0
			for i, x := range sq.F32s() {
				want += float64(x) * float64(dq.F32s()[i])
			}
			for i, x := range sk.F32s() {
				want += float64(x) * float64(dk.F32s()[i])
			}
			loss := func(step float64) float64 { return dLoss * slopeLoss(m, p, sq, sk, step) }
			const h = 1e-6
			if got := (loss(h) - loss(-h)) / (2 * h); math.Abs(got-want) > 1e-3*(math.Abs(want)+0.01) {
				t.Errorf("%+v: the loss changes by %v, the gradients say %v", m, got, want)
			}
		}
	}
}

// slopeLoss is the loss in float64 after a step of the student's queries and keys.
func slopeLoss(m attention.TinyBERT, p *attention.ScorePair, sq, sk tensor.View, step float64) float64 {
	total, pairs, row := 0.0, 0.0, 0
	heads := int(p.Student.Query.Shape[1])
	for _, n := range p.QueryLens {
		pairs += float64(n * n)
		for h := range heads {
			g := h * int(p.Student.Key.Shape[1]) / heads
			for i := range n {
				for j := range n {
					s, t := 0.0, 0.0
					for d := range 26 {
						q, k := ((row+i)*heads+h)*26+d, ((row+j)*int(p.Student.Key.Shape[1])+g)*26+d
						s += (float64(p.Student.Query.F32s()[q]) + step*float64(sq.F32s()[q])) * (float64(p.Student.Key.F32s()[k]) + step*float64(sk.F32s()[k]))
					}
					for d := range 64 {
						t += float64(p.Teacher.Query.F32s()[((row+i)*heads+h)*64+d]) * float64(p.Teacher.Key.F32s()[((row+j)*heads+h)*64+d])
					}
					s, t = s/math.Sqrt(26), t/8
					if m.ZeroBelow < 0 && s <= float64(m.ZeroBelow) {
						s = 0
					}
					if m.ZeroBelow < 0 && t <= float64(m.ZeroBelow) {
						t = 0
					}
					total += (s - t) * (s - t)
				}
			}
		}
		row += n
	}
	if m.Padded > 0 {
		pairs = float64(len(p.QueryLens) * m.Padded * m.Padded)
	}
	return total / pairs / float64(heads)
}

// Workers cannot change a bit of the loss or of a gradient.
func TestTinyBERTWorkers(t *testing.T) {
	p := newPair(rand.New(rand.NewPCG(49, 50)), 4, []int{130, 5, 70, 64})
	var wantLoss float64
	var want []float32
	for workers := 1; workers <= 4; workers++ {
		dq, dk := tensor.New(tensor.F32, 269, 4, 26), tensor.New(tensor.F32, 269, 4, 26)
		loss, err := attention.TinyBERT{ZeroBelow: -3}.Gradients(backend(t, workers), p, 1, dq, dk)
		if err != nil {
			t.Fatal(err)
		}
		got := append(widen(dq), widen(dk)...)
		if want == nil {
			wantLoss, want = loss, got
		}
		if err := diffBits("gradients", got, want, 26); loss != wantLoss || err != nil {
			t.Errorf("%d workers: loss %v, %v of one; %v", workers, loss, wantLoss, err)
		}
	}
}

func TestTinyBERTRefuses(t *testing.T) {
	b := backend(t, 1)
	p := func() *attention.ScorePair { return newPair(rand.New(rand.NewPCG(51, 52)), 2, []int{3, 4}) }
	for what, c := range map[string]struct {
		m     attention.TinyBERT
		spoil func(*attention.ScorePair)
		says  string
	}{
		"padding":   {attention.TinyBERT{Padded: 3}, func(*attention.ScorePair) {}, "Padded is 3"},
		"zero":      {attention.TinyBERT{ZeroBelow: 1}, func(*attention.ScorePair) {}, "ZeroBelow is 1"},
		"lens":      {attention.TinyBERT{}, func(p *attention.ScorePair) { p.KeyLens = []int{3} }, "1 KeyLens"},
		"negative":  {attention.TinyBERT{}, func(p *attention.ScorePair) { p.QueryLens = []int{8, -1} }, "QueryLens[1] is -1"},
		"too few":   {attention.TinyBERT{}, func(p *attention.ScorePair) { p.QueryLens = []int{3, 3} }, "QueryStart"},
		"the heads": {attention.TinyBERT{}, func(p *attention.ScorePair) { p.Teacher = newPair(rand.New(rand.NewPCG(1, 2)), 3, []int{3, 4}).Teacher }, "2 heads"},
		"no views":  {attention.TinyBERT{}, func(p *attention.ScorePair) { p.Student = kernel.ScoreSide{} }, "Student.Query"},
	} {
		pair := p()
		c.spoil(pair)
		_, err := c.m.Loss(b, pair)
		wantError(t, what, err, "attention: tinybert: ", c.says)
	}
	_, err := attention.TinyBERT{}.Gradients(b, p(), 1, tensor.New(tensor.F32, 7, 2, 26), tensor.View{})
	var shape *kernel.ShapeError
	if !errors.As(err, &shape) || shape.Tensor != "DKey" {
		t.Errorf("one gradient: %v, want a ShapeError of DKey", err)
	}
	for _, c := range [][4]int{{0, 4, 12, 2}, {3, 4, 12, 11}, {1, 6, 12, 3}, {0, 1, 1, 0}} {
		if got, err := (attention.TinyBERT{}).TeacherLayer(c[0], c[1], c[2]); err != nil || got != c[3] {
			t.Errorf("layer %d of %d learns %d of %d, want %d: %v", c[0], c[1], got, c[2], c[3], err)
		}
	}
	_, err = attention.TinyBERT{}.TeacherLayer(4, 4, 12)
	wantError(t, "layer", err, "layer 4 of 4")
	_, err = attention.TinyBERT{}.TeacherLayer(0, 5, 12)
	wantError(t, "layers", err, "12 layers")
}
