package kerneltest

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

func (t *builder) topK(exact kernel.Policy) {
	for i, c := range []struct{ n, k int }{{1, 1}, {7, 3}, {64, 64}, {65, 1}, {300, 17}, {513, 1000}, {4097, 128}, {5, 9}} {
		for kind := range []string{"normal", "ties", "special"} {
			for _, counts := range []bool{false, true} {
				l := layouts[i%len(layouts)]
				t.operation("topk", fmt.Sprintf("n=%d/k=%d/kind=%d/counts=%v", c.n, c.k, kind, counts), func(t *trial) { t.chooseTopK(c.n, c.k, kind, counts, l) }, exact)
			}
		}
	}
	t.operation("topk", "empty", func(t *trial) {
		if err := t.backend.TopK(&kernel.TopKArgs{Scores: tensor.New(tensor.F32, 0, 3, 5), K: 2}); err != nil {
			t.wrong("no tokens: %v", err)
		}
	}, exact)
}

// chooseTopK: the indices are those that sorting gives.
func (t *trial) chooseTopK(n, k, kind int, counts bool, l Layout) {
	const tokens, heads = 3, 2
	t.with(func(m *memory) error {
		b, x, err := m.filled("Scores", tensor.F32, l, false, 1, tokens, heads, int64(n))
		if err != nil {
			return err
		}
		special := []float32{float32(math.Inf(-1)), float32(math.NaN()), float32(math.Inf(1)), 0, float32(math.Copysign(0, -1)), -math.MaxFloat32, math.MaxFloat32, 1e-45, -1e-45}
		for i := range x {
			switch kind {
			case 1:
				x[i] = float32(math.Round(float64(2*x[i])) / 2)
			case 2:
				if i%3 > 0 {
					x[i] = special[i/3*7%len(special)]
				}
			}
		}
		b.fill(x)
		a := kernel.TopKArgs{K: k, Out: make([]int32, tokens*heads*k)}
		if a.Scores, err = m.hand(b); err != nil {
			return err
		}
		if counts {
			a.Counts = []int32{int32(n), 0, int32(n+1) / 2}
		}
		if err := t.backend.TopK(&a); err != nil {
			return err
		}
		for r := range tokens * heads {
			have := n
			if counts {
				have = int(a.Counts[r/heads])
			}
			if want, got := largestScores(x[r*n:][:have], k), a.Out[r*k:][:k]; !slices.Equal(got, want) {
				t.wrong("row %d: indices %v, want %v", r, got, want)
				break
			}
		}
		return m.untouched()
	})
}

// largestScores is rule 18 by sorting.
func largestScores(x []float32, k int) []int32 {
	var list []int32
	for j, v := range x {
		if v > float32(math.Inf(-1)) {
			list = append(list, int32(j))
		}
	}
	slices.SortStableFunc(list, func(i, j int32) int { return cmp.Compare(x[j]+0, x[i]+0) })
	list = list[:min(k, len(list))]
	slices.Sort(list)
	for len(list) < k {
		list = append(list, -1)
	}
	return list
}

// topKFaults spoil what is not a view.
var topKFaults = []operandFault{
	{"k-0", func(o *operands) { o.topK.K = 0 }},
	{"k-negative", func(o *operands) { o.topK.K = -1 }},
	{"k-too-large", func(o *operands) { o.topK.K = kernel.MaxScores + 1 }},
	{"out-short", func(o *operands) { o.topK.Out = o.topK.Out[1:] }},
	{"counts-short", func(o *operands) { o.topK.Counts = o.topK.Counts[1:] }},
	{"count-negative", func(o *operands) { o.topK.Counts[0] = -1 }},
	{"count-too-large", func(o *operands) { o.topK.Counts[0] = 8 }},
	{"f16", func(o *operands) { o.topK.Scores = tensor.New(tensor.F16, 3, 2, 7) }},
	{"zero", func(o *operands) { o.topK = kernel.TopKArgs{} }},
}
