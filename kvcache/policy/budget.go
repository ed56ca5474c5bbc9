package policy

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Budget divides the keys that may stay, beside those that always do, among
// layers and heads.
type Budget interface {
	// Split gives the number of keys of each head, 0 to what it has.
	Split(*Request) ([]int, error)
}

// Request is what a Budget divides. Heads are in the order of Sequence.Heads.
type Request struct {
	Layers, KVHeads int
	Have            []int       // keys to choose from
	Quota           []int       // of an even split: the mean budget less the keys that always stay
	Scores          [][]float32 // of the keys to choose from
}

func (r *Request) add(c *choice, keys int) {
	scores := make([]float32, len(c.candidates))
	for k, j := range c.candidates {
		scores[k] = c.scores[j]
	}
	r.Have, r.Scores = append(r.Have, len(scores)), append(r.Scores, scores)
	r.Quota = append(r.Quota, max(keys-len(c.always), 0))
}

// Uniform gives each head the same.
type Uniform struct{}

// Split gives each head its quota.
func (Uniform) Split(r *Request) ([]int, error) {
	out := make([]int, len(r.Have))
	for i, n := range r.Have {
		out[i] = min(n, r.Quota[i])
	}
	return out, nil
}

// Curve gives layers shares of all keys, and the heads of a layer the same. What
// a layer cannot use goes to the others.
type Curve struct {
	Weights []float64 // [Layers], none below 0
}

// Split divides by Weights.
func (b Curve) Split(r *Request) ([]int, error) {
	if len(b.Weights) != r.Layers {
		return nil, valueError("Curve.Weights", len(b.Weights), "one for each of %d layers", r.Layers)
	}
	total, weights := 0, make([]float64, len(r.Have))
	for i := range r.Have {
		w := b.Weights[i/r.KVHeads]
		if !(w >= 0 && w <= math.MaxFloat32) {
			return nil, valueError(fmt.Sprintf("Curve.Weights[%d]", i/r.KVHeads), w, "0 or more")
		}
		weights[i] = w
		total += r.Quota[i]
	}
	return divide(total, weights, r.Have), nil
}

// divide divides total by weights, none more than its cap, by largest remainders;
// what is left over goes to those that have room. All of total is given where
// weights and caps allow.
func divide(total int, weights []float64, caps []int) []int {
	out := make([]int, len(caps))
	for {
		left, sum := total, 0.0
		for i, n := range out {
			left -= n
			if n < caps[i] {
				sum += weights[i]
			}
		}
		if left <= 0 || sum <= 0 {
			return out
		}
		var order []int
		rest := make([]float64, len(caps))
		given := 0
		for i, n := range out {
			if n == caps[i] || weights[i] == 0 {
				continue
			}
			exact := float64(left) * weights[i] / sum
			whole := min(int(exact), caps[i]-n)
			out[i] += whole
			given += whole
			if out[i] < caps[i] {
				rest[i], order = exact-float64(whole), append(order, i)
			}
		}
		if given > 0 && len(order) < len(caps) && left-given > len(order) {
			continue // some are full: divide again
		}
		slices.SortStableFunc(order, func(i, j int) int { return cmp.Compare(rest[j], rest[i]) })
		for _, i := range order[:min(len(order), left-given)] {
			out[i]++
		}
	}
}

// Adaptive divides the keys of a layer among its heads by their scores (Feng et
// al., "Ada-KV", https://arxiv.org/abs/2407.11550): the best of all heads stay,
// but of each head at least the part Floor of an even share. Scores must mean the
// same in all heads, as sums of weights do.
type Adaptive struct {
	Floor  float64 // 0 to 1; Ada-KV takes 0.2
	Layers Budget  // divides among layers; nil: Uniform
	Model  bool    // heads of all layers compete
}

// Split divides among layers, then within each.
func (b Adaptive) Split(r *Request) ([]int, error) {
	if !(b.Floor >= 0 && b.Floor <= 1) {
		return nil, valueError("Adaptive.Floor", b.Floor, "0 to 1")
	}
	layers := b.Layers
	if layers == nil {
		layers = Uniform{}
	}
	even, err := layers.Split(r)
	if err != nil {
		return nil, err
	}
	out, group := make([]int, len(r.Have)), r.KVHeads
	if b.Model {
		group = len(r.Have)
	}
	for lo := 0; lo < len(r.Have); lo += group {
		hi := lo + group
		total := 0
		for _, n := range even[lo:hi] {
			total += n
		}
		floor := int(b.Floor * float64(total) / float64(group))
		adapt(out[lo:hi], r.Scores[lo:hi], floor, total)
	}
	return out, nil
}

// adapt gives each head floor keys, and the rest of total to the heads with the
// next best scores.
func adapt(out []int, scores [][]float32, floor, total int) {
	type entry struct {
		score float32
		head  int
	}
	var rest []entry
	for head, s := range scores {
		list := slices.Clone(s)
		out[head] = min(floor, len(list))
		first(list, out[head], func(a, b float32) int { return cmp.Compare(b, a) })
		total -= out[head]
		for _, x := range list[out[head]:] {
			rest = append(rest, entry{x, head})
		}
	}
	total = min(max(total, 0), len(rest))
	first(rest, total, func(a, b entry) int {
		if c := cmp.Compare(b.score, a.score); c != 0 {
			return c
		}
		return cmp.Compare(a.head, b.head)
	})
	for _, e := range rest[:total] {
		out[e.head]++
	}
}
