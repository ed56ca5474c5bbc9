package attention

import "github.com/longctx/longctx/internal/xmath"

// Score says what is done to a score after scaling. Its tables come with each
// Run, in kernel.ScoreArgs.
type Score struct {
	// SoftCap c > 0: s ← c·tanh(s/c) (Gemma 2, arXiv 2408.00118).
	SoftCap float64

	// LogN is the trained length L: scores of query index i are multiplied by
	// max(1, ln(i+1)/ln L) (Su, "ReRoPE", 2023; Chiang and Cholak, arXiv
	// 2202.12172). 0: off.
	LogN int

	Slopes     bool // ALiBi: s −= Slopes[h]·|i−j| (Press et al., arXiv 2108.12409)
	RelBias    bool // T5 and others: s += RelBias[h, clamp(i−j−RelBiasStart)]
	PrefixBias bool // forgetting attention: s += C[i] − C[j] (Lin et al., arXiv 2503.02130)
	SinkLogit  bool // gpt-oss: one more exp(SinkLogit[h]) in the denominator

	RelBiasStart int32 // i−j of the first entry of the RelBias table
}

// ALiBiSlopes returns the slopes of ALiBi for a number of heads: the powers
// 2^(−8h/n) for h = 1 … n where n is a power of two, and otherwise those of
// the power below followed by every other one of twice that (Press et al.,
// arXiv 2108.12409, and its published code).
func ALiBiSlopes(heads int) []float32 {
	n := 1
	for 2*n <= heads {
		n *= 2
	}
	slopes := make([]float32, 0, max(heads, 0))
	for h := 1; h <= n && h <= heads; h++ {
		slopes = append(slopes, float32(xmath.Pow(2, -8*float64(h)/float64(n))))
	}
	for h := 1; len(slopes) < heads; h += 2 {
		slopes = append(slopes, float32(xmath.Pow(2, -4*float64(h)/float64(n))))
	}
	return slopes
}
