package vec

import "github.com/longctx/longctx/kernel"

// Gradient finishes one row of a tile in the backward pass, rule 10 of package
// kernel: from scores s and dP, for each key j that visible shows
//
//	s[j] = E(s[j] − lse);  g[j] = s[j]·(dp[j] − delta)
//
// and 0 in both for the others. All Stride elements are written.
func Gradient(p kernel.Policy, s, dp, g []float32, lse, delta float32, visible uint64) {
	s, dp, g = s[:Stride], dp[:Stride], g[:Stride]
	if gradient(s, dp, g, lse, delta, visible) {
		return
	}
	for j := range s {
		if visible>>j&1 == 0 {
			s[j], g[j] = 0, 0
			continue
		}
		e := Exp2(p, s[j]-lse)
		s[j], g[j] = e, float32(e*(dp[j]-delta))
	}
}
