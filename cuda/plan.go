//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"cmp"
	"math"
	"slices"
	"sort"
	"unsafe"

	"github.com/longctx/longctx/kernel"
)

// plan is a Batch as tables of the device, in one run of bytes.
type plan struct {
	spec  *kernel.Spec
	batch *kernel.Batch

	bytes   []byte
	offsets [tableCount]int64 // −1: no such table
	room    [tableCount]int64 // bytes, so that the places of tables seldom change

	sequences []C.lc_sequence
	items     []C.lc_item
	merges    []C.lc_item
	bounds    []C.lc_bounds
	ranges    []C.lc_range // [terms][tokens]
	blocks    []C.lc_item  // rows of one head, for gradients and statistics
	spans     []C.lc_span  // the tiles of keys that they are met with
	pages     []int32
	parts     int
	roomParts int // parts that the workspace is made for
	variant   [kernel.MaxTerms]int
}

// The tables of a plan.
const (
	tableCounts = iota
	tableSequences
	tableItems
	tableMerges
	tableBounds
	tableRanges
	tableScales
	tablePages
	tableRowQ
	tableRowK
	tableQueryPositions
	tableKeyPositions
	tableTree
	tableBlockIndptr
	tableBlockIndices
	tableBlocks
	tableSpans
	tableCount
)

// noKeys is the range of a row that sees nothing: no tile is full for it.
var noKeys = C.lc_range{lo: math.MaxInt32, hi: 0}

// lower makes the tables for blocks of a shape, of which slots run at a time.
// With parts, every item leaves the states of its chunks to be merged.
func (t *plan) lower(s *kernel.Spec, b *kernel.Batch, x *shape, slots int, parts bool) {
	t.spec, t.batch = s, b
	for i := range b.Terms {
		t.variant[i] = i
		for k := range i {
			if s.RotaryDim == 0 || b.Terms[k].RowQ == b.Terms[i].RowQ && b.Terms[k].RowK == b.Terms[i].RowK {
				t.variant[i] = k
				break
			}
		}
	}
	t.lowerSequences()
	t.lowerRanges()
	t.lowerItems(x, slots, parts)
	t.lowerBlocks()
	t.lowerPages()
	t.pack()
}

func (t *plan) lowerSequences() {
	b, s := t.batch, t.spec
	t.sequences = t.sequences[:0]
	keys := int64(0)
	for i, n := range b.SeqLens {
		q := C.lc_sequence{
			i0: C.int64_t(b.QueryIndex(i)), keys: C.int64_t(n), key_offset: C.int64_t(keys),
			query_start: C.int32_t(b.QueryStart[i]), queries: C.int32_t(b.QueryLen(i)),
		}
		if s.PageSize > 0 {
			q.key_start = C.int64_t(b.Pages.Indptr[i])
		} else {
			q.key_start = C.int64_t(b.KeyStart[i])
		}
		if s.Masks&kernel.MaskTree != 0 {
			q.tree_start = C.int64_t(b.Tree.Start[i])
		}
		if s.Masks&kernel.MaskBlocks != 0 {
			q.block_row = C.int64_t(b.Blocks.RowStart[i])
			q.block_first = C.int64_t(kernel.FloorDiv(b.QueryIndex(i), int64(b.Blocks.QueryBlock)))
			q.query_blocks = C.int64_t(b.Blocks.QueryBlocks(b, i))
		}
		t.sequences = append(t.sequences, q)
		keys += int64(n)
	}
}

// lowerRanges finds the keys that each token sees in each Term, before the
// masks that are no intervals.
func (t *plan) lowerRanges() {
	b, tokens := t.batch, t.batch.Tokens()
	t.ranges = slices.Grow(t.ranges[:0], len(b.Terms)*tokens)
	for term := range b.Terms {
		region := &b.Terms[term].Region
		for i := range b.SeqLens {
			q, prefix := &t.sequences[i], int32(0)
			if t.spec.Masks&kernel.MaskPrefix != 0 {
				prefix = b.PrefixLens[i]
			}
			for r := range int64(q.queries) {
				index := int64(q.i0) + r
				lo, hi := region.Keys(index, int64(q.keys), prefix)
				if t.spec.Masks&kernel.MaskDocument != 0 && lo < hi {
					// ids do not decrease, so a document is an interval too
					ids := b.Documents[q.key_offset:][:q.keys]
					id := ids[index]
					lo = max(lo, int64(sort.Search(len(ids), func(k int) bool { return ids[k] >= id })))
					hi = min(hi, int64(sort.Search(len(ids), func(k int) bool { return ids[k] > id })))
				}
				k := noKeys
				if lo < hi {
					k = C.lc_range{lo: C.int32_t(lo), hi: C.int32_t(hi)}
				}
				t.ranges = append(t.ranges, k)
			}
		}
	}
}

// lowerItems cuts the rows into blocks, and the keys of a block into runs of
// chunks where there are too few blocks for the device. The most costly come
// first.
func (t *plan) lowerItems(x *shape, slots int, parts bool) {
	s, b := t.spec, t.batch
	heads := min(s.Group(), x.rows)
	tokens := x.rows / heads
	t.items, t.merges, t.bounds, t.parts = t.items[:0], t.merges[:0], t.bounds[:0], 0
	chunks := int64(0)
	blocks := func(yield func(C.lc_item)) {
		for i := range b.SeqLens {
			n := b.QueryLen(i)
			for t0 := 0; t0 < n; t0 += tokens {
				it := C.lc_item{sequence: C.int32_t(i), t0: C.int32_t(t0), tokens: C.int32_t(min(tokens, n-t0)), part: -1}
				it.bounds = C.int32_t(len(t.bounds))
				t.boundsOf(&it)
				for g := range s.KVHeads {
					for h := 0; h < s.Group(); h += heads {
						it.kv_head, it.head, it.heads = C.int32_t(g), C.int32_t(g*s.Group()+h), C.int32_t(min(heads, s.Group()-h))
						yield(it)
					}
				}
			}
		}
	}
	count := 0
	blocks(func(it C.lc_item) { count, chunks = count+1, chunks+int64(it.chunk1-it.chunk0) })
	run := C.int32_t(math.MaxInt32)
	if count < 2*slots { // 4 items a slot, so that the last ones end together
		run = C.int32_t(max(1, chunks/int64(4*slots)))
	}
	if parts {
		run = C.int32_t(max(1, min(int64(run), chunks/int64(32*slots)))) // a block is one warp
	}
	t.bounds = t.bounds[:0]
	blocks(func(it C.lc_item) {
		if it.chunk1-it.chunk0 <= run && !parts {
			t.items = append(t.items, it)
			return
		}
		it.part = C.int32_t(t.parts)
		t.merges = append(t.merges, it)
		t.parts += int(it.chunk1 - it.chunk0)
		first, end := it.chunk0, it.chunk1
		for c := first; c < end; c += run {
			it.chunk0, it.chunk1, it.part = c, min(c+run, end), t.merges[len(t.merges)-1].part+(c-first)
			t.items = append(t.items, it)
		}
	})
	slices.SortStableFunc(t.items, func(x, y C.lc_item) int { return cmp.Compare(t.cost(&y), t.cost(&x)) })
}

// gradientRows is the tokens of a block of one head.
const gradientRows = 64

// lowerBlocks lists what Backward and ColumnStats go through: the blocks of each
// head, tokens ascending, and the tiles of keys of each KV head.
func (t *plan) lowerBlocks() {
	s, b := t.spec, t.batch
	t.blocks, t.spans = t.blocks[:0], t.spans[:0]
	if !s.Backward && !s.ColumnStats {
		return
	}
	for i, keys := range b.SeqLens {
		first, bounds := len(t.blocks), len(t.bounds)
		for h := range s.Heads {
			at := bounds
			for t0 := 0; t0 < b.QueryLen(i); t0 += gradientRows {
				it := C.lc_item{
					sequence: C.int32_t(i), kv_head: C.int32_t(h / s.Group()), head: C.int32_t(h), heads: 1,
					t0: C.int32_t(t0), tokens: C.int32_t(min(gradientRows, b.QueryLen(i)-t0)), bounds: C.int32_t(at), part: -1,
				}
				t.boundsOf(&it)
				if at += len(b.Terms); h > 0 { // the heads see the same
					t.bounds = t.bounds[:len(t.bounds)-len(b.Terms)]
				}
				t.blocks = append(t.blocks, it)
			}
		}
		n := (len(t.blocks) - first) / s.KVHeads
		for j := 0; j < int(keys); j += kernel.TileSize {
			for g := range s.KVHeads {
				t.spans = append(t.spans, C.lc_span{sequence: C.int32_t(i), kv_head: C.int32_t(g), j0: C.int32_t(j), first: C.int32_t(first + g*n), blocks: C.int32_t(n)})
			}
		}
	}
}

// boundsOf appends the bounds of an item's tokens in each Term, and sets the
// chunks that they reach.
func (t *plan) boundsOf(it *C.lc_item) {
	lo, hi := C.int32_t(math.MaxInt32), C.int32_t(0)
	n := t.batch.Tokens()
	at := int(t.sequences[it.sequence].query_start + it.t0)
	for term := range t.batch.Terms {
		x := C.lc_bounds{min_lo: math.MaxInt32, min_hi: math.MaxInt32}
		for _, k := range t.ranges[term*n+at:][:it.tokens] {
			x.min_lo, x.max_lo = min(x.min_lo, k.lo), max(x.max_lo, k.lo)
			x.min_hi, x.max_hi = min(x.min_hi, k.hi), max(x.max_hi, k.hi)
		}
		t.bounds = append(t.bounds, x)
		lo, hi = min(lo, x.min_lo), max(hi, x.max_hi)
	}
	it.chunk0, it.chunk1 = 0, 0
	if lo < hi {
		it.chunk0, it.chunk1 = lo/kernel.ChunkSize, (hi-1)/kernel.ChunkSize+1
	}
}

// cost is about how many pairs an item has.
func (t *plan) cost(it *C.lc_item) int64 {
	sum := int64(0)
	for _, x := range t.bounds[it.bounds:][:len(t.batch.Terms)] {
		lo := max(int64(x.min_lo), int64(it.chunk0)*kernel.ChunkSize)
		hi := min(int64(x.max_hi), int64(it.chunk1)*kernel.ChunkSize)
		sum += max(hi-lo, 0)
	}
	return sum * int64(it.tokens)
}

// lowerPages makes one table of the pages, −1 − page for coded ones.
func (t *plan) lowerPages() {
	b := t.batch
	t.pages = t.pages[:0]
	if t.spec.PageSize == 0 {
		return
	}
	t.pages = append(t.pages, b.Pages.Indices...)
	for i := range t.pages {
		if b.Pages.IsCoded(i) {
			t.pages[i] = -1 - t.pages[i]
		}
	}
}

// pack puts the tables into t.bytes.
func (t *plan) pack() {
	b := t.batch
	t.bytes = t.bytes[:0]
	t.put(tableCounts, bytesOf([]C.lc_counts{{
		items: C.int32_t(len(t.items)), merges: C.int32_t(len(t.merges)), blocks: C.int32_t(len(t.blocks)), spans: C.int32_t(len(t.spans)),
	}}))
	t.put(tableSequences, bytesOf(t.sequences))
	t.put(tableItems, bytesOf(t.items))
	t.put(tableMerges, bytesOf(t.merges))
	t.put(tableBounds, bytesOf(t.bounds))
	t.put(tableRanges, bytesOf(t.ranges))
	t.put(tableScales, bytesOf(b.ScoreScale))
	t.put(tablePages, bytesOf(t.pages))
	var q, k []C.lc_row_map
	for i := range b.Terms {
		q, k = append(q, rowMap(&b.Terms[i].RowQ)), append(k, rowMap(&b.Terms[i].RowK))
	}
	t.put(tableRowQ, bytesOf(q))
	t.put(tableRowK, bytesOf(k))
	var query, key []int32
	if b.Positions != nil {
		query, key = b.Positions.Query, b.Positions.Key
	}
	t.put(tableQueryPositions, bytesOf(query))
	t.put(tableKeyPositions, bytesOf(key))
	t.put(tableTree, bytesOf(b.Tree.Bits))
	t.put(tableBlockIndptr, bytesOf(b.Blocks.Indptr))
	t.put(tableBlockIndices, bytesOf(b.Blocks.Indices))
	t.put(tableBlocks, bytesOf(t.blocks))
	t.put(tableSpans, bytesOf(t.spans))
}

// put appends a table, and room for it to grow: its place, and those of the
// tables after it, change only when it has doubled.
func (t *plan) put(table int, x []byte) {
	n := int64(len(x))
	for room := &t.room[table]; *room < n; {
		*room = max(64, 2**room)
	}
	t.offsets[table] = -1
	if n > 0 {
		t.offsets[table] = int64(len(t.bytes))
	}
	t.bytes = append(t.bytes, x...)
	t.bytes = append(t.bytes, make([]byte, t.room[table]-n)...)
}

// roomFor is how many items a table of n has room for; none if it is empty.
func (t *plan) roomFor(table, n int) int {
	if n == 0 {
		return 0
	}
	return int(t.room[table] / C.sizeof_lc_item)
}

func bytesOf[T any](x []T) []byte {
	var e T
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(x))), len(x)*int(unsafe.Sizeof(e)))
}

// fill sets what follows from the Batch, with the tables at an address.
func (t *plan) fill(p *C.lc_attention_params, at uint64) {
	b := t.batch
	for i, to := range [...]*C.uint64_t{
		&p.counts, &p.sequences, &p.items, &p.merges, &p.bounds, &p.ranges, &p.scales, &p.pages, &p.row_q, &p.row_k,
		&p.query_positions, &p.key_positions, &p.tree, &p.block_indptr, &p.block_indices,
	} {
		if t.offsets[i] >= 0 {
			*to = C.uint64_t(at + uint64(t.offsets[i]))
		}
	}
	p.tokens, p.terms = C.int32_t(b.Tokens()), C.int32_t(len(b.Terms))
	p.query_block, p.key_block = C.int32_t(b.Blocks.QueryBlock), C.int32_t(b.Blocks.KeyBlock)
	if b.Blocks.PerHead {
		p.blocks_per_head = 1
	}
	for i := range b.Terms {
		p.variant[i] = C.int32_t(t.variant[i])
	}
}

func rowMap(m *kernel.RowMap) C.lc_row_map {
	return C.lc_row_map{mod: C.int32_t(m.Mod), div: C.int32_t(m.Div), first: C.int32_t(m.First), base: C.int32_t(m.Base), count: C.int32_t(m.Count)}
}
