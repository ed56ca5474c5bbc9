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
	out := a.Out[int(i)*a.K:][:a.K]
	if t.scores.dim == 1 && n > 0 {
		chooseRow(t.scores.f32[at:][:n], out)
		return
	}
	row := make([]float32, n)
	for j := range row {
		row[j] = t.scores.f32[at+int64(j)*t.scores.dim]
	}
	chooseRow(row, out)
}

// chooseRow puts the indices of the len(out) largest scores of x into out, ascending,
// then −1. It goes through the bits of their ranks, eleven at a time, from the
// highest: only what the first eleven leave open is looked at again.
func chooseRow(x []float32, out []int32) {
	var counts [4][1 << 11]int32 // side by side: neighbours often count the same
	for j, v := range x {
		counts[j&3][rank(v)>>21]++
	}
	above, digit, n := 0, uint32(1<<11-1), 0
	for ; digit > 0; digit-- { // a rank of digit 0 is 0
		if n = int(counts[0][digit] + counts[1][digit] + counts[2][digit] + counts[3][digit]); above+n >= len(out) {
			break
		}
		above += n
	}
	// Those of larger digits are chosen; among those of this one is the last.
	var memory [512]uint64
	open := memory[:0]
	if above+n > len(memory) {
		open = make([]uint64, 0, above+n)
	}
	for j, v := range x {
		if k := rank(v); k >= max(digit<<21, 1) {
			open = append(open, uint64(j)<<32|uint64(k))
		}
	}
	least, ties := threshold(open, digit, len(out)-above)
	n = 0
	for _, c := range open {
		k := uint32(c)
		if k < least || k == least && ties == 0 {
			continue
		}
		if k == least {
			ties--
		}
		out[n] = int32(c >> 32)
		n++
	}
	for ; n < len(out); n++ {
		out[n] = -1
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

// threshold is the rank of the k-th largest of those candidates whose rank begins
// with digit, and how many of that rank are among the first k: those above it all
// are. With digit 0 all are.
func threshold(candidates []uint64, digit uint32, k int) (least uint32, ties int) {
	if digit == 0 {
		return 1, len(candidates)
	}
	above := 0 // whose bits so far are larger
	var counts [1 << 11]int32
	least = digit
	for _, digit := range [...]struct{ shift, bits uint }{{10, 11}, {0, 10}} {
		clear(counts[:])
		for _, c := range candidates {
			if x := uint32(c); x>>(digit.shift+digit.bits) == least {
				counts[x>>digit.shift&(1<<digit.bits-1)]++
			}
		}
		d := 1<<digit.bits - 1
		for d > 0 && above+int(counts[d]) < k {
			above += int(counts[d])
			d--
		}
		least = least<<digit.bits | uint32(d)
	}
	return least, k - above
}
