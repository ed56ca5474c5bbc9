package cpu

import (
	"math"

	"github.com/longctx/longctx/kernel"
)

// TopK finds the indices of the largest scores of rows.
func (b *Backend) TopK(a *kernel.TopKArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := onHost(&a.Scores); err != nil {
		return err
	}
	rows := a.Scores.Shape[0] * a.Scores.Shape[1]
	t := choosing{a, read(&a.Scores)}
	if b.pool.workers > 1 && rows > 1 && a.Scores.Len() >= opShare {
		b.pool.do(&job{}, &choosing{t.args, t.scores}, rows)
		return nil
	}
	for i := range rows {
		t.item(0, i)
	}
	return nil
}

// choosing finds the largest scores of a row an item.
type choosing struct {
	args   *kernel.TopKArgs
	scores reader
}

func (t *choosing) item(_ int, i int64) {
	a, heads := t.args, t.args.Scores.Shape[1]
	token, n := i/heads, t.scores.n
	if a.Counts != nil {
		n = int(a.Counts[token])
	}
	at := t.scores.offset + token*t.scores.row + i%heads*t.scores.head
	key := func(j int) uint32 { return rank(t.scores.f32[at+int64(j)*t.scores.dim]) }
	out := a.Out[int(i)*a.K:][:a.K]
	least, ties := threshold(key, n, a.K)
	for j := 0; j < n && len(out) > 0; j++ {
		k := key(j)
		if k < least || k == least && ties == 0 {
			continue
		}
		if k == least {
			ties--
		}
		out[0], out = int32(j), out[1:]
	}
	for j := range out {
		out[j] = -1
	}
}

// rank orders scores as integers: 0 for what is never chosen, a NaN or −Inf. −0
// and +0 are the same.
func rank(x float32) uint32 {
	if !(x >= -math.MaxFloat32) {
		return 0
	}
	u := math.Float32bits(x + 0)
	return u ^ (uint32(int32(u)>>31) | 1<<31)
}

// threshold is the rank of the k-th largest of n keys, and how many of that rank
// are among the first k: those above it all are. It goes through the bits of the
// ranks, eleven at a time, from the highest. Where fewer than k keys are above 0
// it is 1.
func threshold(key func(int) uint32, n, k int) (least uint32, ties int) {
	above := 0 // keys whose bits so far are larger
	var counts [1 << 11]int32
	for _, digit := range [...]struct{ shift, bits uint }{{21, 11}, {10, 11}, {0, 10}} {
		clear(counts[:])
		for j := range n {
			if x := key(j); x != 0 && x>>(digit.shift+digit.bits) == least>>(digit.shift+digit.bits) {
				counts[x>>digit.shift&(1<<digit.bits-1)]++
			}
		}
		d := 1<<digit.bits - 1
		for d > 0 && above+int(counts[d]) < k {
			above += int(counts[d])
			d--
		}
		least |= uint32(d) << digit.shift
	}
	if least == 0 {
		return 1, n
	}
	return least, k - above
}
