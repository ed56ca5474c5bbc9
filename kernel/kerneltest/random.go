package kerneltest

import (
	"hash/fnv"
	"math/rand/v2"
)

// random makes the inputs. They are part of the golden hashes, so nothing here
// may depend on an elementary function or on the order of rand.Rand's methods:
// only the 64-bit outputs of PCG are used.
type random struct{ pcg *rand.PCG }

func newRandom(seed, stream uint64) *random { return &random{rand.NewPCG(seed, stream)} }

// seedOf makes the inputs of a case a function of its name, so that a new case
// leaves the others as they are.
func seedOf(name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return h.Sum64()
}

// normal is nearly N(0, 1): four uniforms of 16 bits, of variance 1/12 each.
func (r *random) normal() float64 {
	u := r.pcg.Uint64()
	sum := int64(u&0xffff) + int64(u>>16&0xffff) + int64(u>>32&0xffff) + int64(u>>48)
	const sqrt3 = 1.7320508075688772
	return float64(2*sum-4*0xffff) * (sqrt3 / (2 * 0x10000))
}

// below is an integer 0 <= x < n.
func (r *random) below(n int) int { return int(r.pcg.Uint64() >> 33 % uint64(n)) }

// permutation is a permutation of 0 … n−1.
func (r *random) permutation(n int) []int {
	out := make([]int, n)
	for i := range out {
		k := r.below(i + 1)
		out[i], out[k] = out[k], i
	}
	return out
}
