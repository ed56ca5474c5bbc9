package policy

// Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal
// Information Funneling", https://arxiv.org/abs/2406.02069
//
// SnapKV with budgets that fall from layer to layer: attention spreads in low
// layers and gathers on few keys in high ones. Needs and cost: SnapKV's. Limits:
// of a model in which that is so; the code rounds the step down and gives less
// than the budget, Pyramid gives all of it.

// PyramidKV is SnapKV with Pyramid{20}.
func PyramidKV(window int) *Policy {
	p := SnapKV(window)
	p.Budget = Pyramid{Beta: 20}
	return p
}

// Pyramid gives the last layer 1/Beta of the mean, and the others a linear slope
// up to the first with 2 − 1/Beta of it. It is for what stays beside the window.
type Pyramid struct {
	Beta float64 // 1 (even) or more
}

// Split divides along the slope.
func (b Pyramid) Split(r *Request) ([]int, error) {
	if !(b.Beta >= 1 && b.Beta <= 1e6) {
		return nil, valueError("Pyramid.Beta", b.Beta, "1 to 1e6")
	}
	weights := make([]float64, r.Layers)
	least := 1 / b.Beta
	for l := range weights {
		if weights[l] = 1; r.Layers > 1 {
			weights[l] = 2 - least - float64(l)*(2-2*least)/float64(r.Layers-1)
		}
	}
	return Curve{weights}.Split(r)
}
