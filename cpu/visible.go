package cpu

import (
	"math/bits"
	"sort"

	"github.com/longctx/longctx/kernel"
)

// keyRange is the key indices lo <= j < hi.
type keyRange struct{ lo, hi int64 }

// sequence is what a block needs to know of its sequence.
type sequence struct {
	batch      *kernel.Batch
	spec       *kernel.Spec
	s          int
	i0         int64 // index of its first query token
	keys       int64
	keyOffset  int64 // keys of the sequences before it: its place in per-key tables
	prefix     int32
	blockRow   int64 // BlockSparse row of query block 0 and KV head 0
	blockFirst int64 // first query block
	blocks     int64
}

func (q *sequence) set(b *kernel.Batch, spec *kernel.Spec, s int, keyOffset int64) {
	*q = sequence{batch: b, spec: spec, s: s, i0: b.QueryIndex(s), keys: int64(b.SeqLens[s]), keyOffset: keyOffset}
	if spec.Masks&kernel.MaskPrefix != 0 {
		q.prefix = b.PrefixLens[s]
	}
	if spec.Masks&kernel.MaskBlocks != 0 {
		q.blockRow = int64(b.Blocks.RowStart[s])
		q.blockFirst = kernel.FloorDiv(q.i0, int64(b.Blocks.QueryBlock))
		q.blocks = b.Blocks.QueryBlocks(b, s)
	}
}

// keyRange is the interval of keys that query index i sees in a term, before
// the masks that are no intervals.
func (q *sequence) keyRange(i int64, term int) keyRange {
	lo, hi := q.batch.Terms[term].Region.Keys(i, q.keys, q.prefix)
	if q.spec.Masks&kernel.MaskDocument != 0 && lo < hi {
		// ids do not decrease, so a document is an interval too
		ids := q.batch.Documents[q.keyOffset : q.keyOffset+q.keys]
		id := ids[i]
		lo = max(lo, int64(sort.Search(len(ids), func(k int) bool { return ids[k] >= id })))
		hi = min(hi, int64(sort.Search(len(ids), func(k int) bool { return ids[k] > id })))
	}
	return keyRange{lo, max(lo, hi)}
}

// word is the visible keys of the tile j0 … j0+63 for a row whose interval is
// r: bit k stands for key j0+k.
func (q *sequence) word(r keyRange, i, j0 int64, kvHead int) uint64 {
	w := spanBits(r.lo-j0, r.hi-j0)
	if w == 0 {
		return 0
	}
	if q.spec.Masks&kernel.MaskTree != 0 {
		w &= q.treeBits(i, j0)
	}
	if q.spec.Masks&kernel.MaskBlocks != 0 {
		w &= q.blockBits(i, j0, kvHead)
	}
	return w
}

// spanBits sets the bits lo <= k < hi of a word.
func spanBits(lo, hi int64) uint64 {
	lo, hi = max(lo, 0), min(hi, 64)
	if lo >= hi {
		return 0
	}
	return ^uint64(0) >> (64 - (hi - lo)) << lo
}

// treeBits: keys before the query tokens are open, the others as Batch.Tree.
func (q *sequence) treeBits(i, j0 int64) uint64 {
	t := &q.batch.Tree
	n := int64(q.batch.QueryLen(q.s))
	words := (n + 63) / 64
	row := t.Bits[int64(t.Start[q.s])+(i-q.i0)*words:][:words]
	at := j0 - q.i0 // tree column of bit 0
	if at <= -64 {
		return ^uint64(0)
	}
	if at < 0 {
		return spanBits(0, -at) | row[0]<<uint(-at)
	}
	k, shift := at/64, uint(at%64)
	if k >= words {
		return 0
	}
	w := row[k] >> shift
	if shift > 0 && k+1 < words {
		w |= row[k+1] << (64 - shift)
	}
	return w
}

func (q *sequence) blockBits(i, j0 int64, kvHead int) uint64 {
	m := &q.batch.Blocks
	row := q.blockRow + kernel.FloorDiv(i, int64(m.QueryBlock)) - q.blockFirst
	if m.PerHead {
		row += int64(kvHead) * q.blocks
	}
	list := m.Indices[m.Indptr[row]:m.Indptr[row+1]]
	size := int64(m.KeyBlock)
	first := int32(j0 / size)
	var w uint64
	for k := sort.Search(len(list), func(k int) bool { return list[k] >= first }); k < len(list); k++ {
		lo := int64(list[k])*size - j0
		if lo >= 64 {
			break
		}
		w |= spanBits(lo, lo+size)
	}
	return w
}

// lowest is the index of the lowest set bit of w.
func lowest(w uint64) int { return bits.TrailingZeros64(w) }
