// Multi-axis positions: Wang et al., "Qwen2-VL: Enhancing Vision-Language
// Model's Perception of the World at Any Resolution",
// https://arxiv.org/abs/2409.12191, section 2.1.

package rope

import "fmt"

// MRoPE gives each pair one of three position axes: time, height, width. A
// text token has the same position on all three, and is then rotated as
// without MRoPE. The zero value is no MRoPE. It changes no frequency, so it
// goes with every method.
type MRoPE struct {
	Sections [3]int // pairs of each axis; the sum is the number of pairs
	// Interleaved deals the axes out in turn, t h w t h w …, until height and
	// width have had their pairs (Qwen3-VL). Otherwise the pairs of an axis
	// follow each other (Qwen2-VL).
	Interleaved bool
}

func (m MRoPE) axes(method string, pairs int) ([]uint8, error) {
	s := m.Sections
	if s == [3]int{} {
		if m.Interleaved {
			return nil, &ValueError{method, "MRoPE.Sections", fmt.Sprint(s), "the pairs of each axis, as Interleaved is set"}
		}
		return nil, nil
	}
	if min(s[0], s[1], s[2]) < 0 || max(s[0], s[1], s[2]) > pairs || s[0]+s[1]+s[2] != pairs {
		return nil, &ValueError{method, "MRoPE.Sections", fmt.Sprint(s), fmt.Sprintf("three numbers whose sum is the number of pairs, %d", pairs)}
	}
	a := make([]uint8, pairs)
	if !m.Interleaved {
		for i := range a {
			switch {
			case i >= s[0]+s[1]:
				a[i] = 2
			case i >= s[0]:
				a[i] = 1
			}
		}
		return a, nil
	}
	// the last pair of axis k is 3(s[k]−1)+k: beyond the end, the axis would
	// quietly get fewer pairs than asked for
	for k := 1; k < 3; k++ {
		if s[k] > 0 && 3*(s[k]-1)+k >= pairs {
			return nil, &ValueError{method, fmt.Sprintf("MRoPE.Sections[%d]", k), fmt.Sprint(s[k]), fmt.Sprintf("at most %d of %d interleaved pairs", (pairs-1-k)/3+1, pairs)}
		}
	}
	for i := range a {
		if k := i % 3; k > 0 && i < 3*s[k] {
			a[i] = uint8(k)
		}
	}
	return a, nil
}
