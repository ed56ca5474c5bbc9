package cpu

import "github.com/longctx/longctx/kernel"

// Backward and ColumnStats go through the tokens of one query head at a time:
// what a key is given is summed head by head. Their blocks are worked on in
// rows, whatever their number: every product has features or keys side by side.

// headRows is the number of rows of such a block, tokens of one query head; 0
// where the Spec has no use for them.
func headRows(s *kernel.Spec) int {
	if !s.Backward && !s.ColumnStats {
		return 0
	}
	return 128
}

// maxSpan is the most tiles of keys that are met with a block together. Their
// keys, values and gradients should stay in the second-level cache.
const maxSpan = 4

// headBlocks are the blocks, and the spans of tiles of keys that they are met
// with.
type headBlocks struct {
	blocks []block // of a sequence and head together, tokens ascending
	first  []int   // [sequences·Heads+1] into blocks
	span   int64   // tiles
	spans  []int64 // [sequences+1] spans of the sequences before each
}

func (l *headBlocks) list(s *kernel.Spec, b *kernel.Batch, workers int) {
	tokens, tiles := headRows(s), int64(0)
	for _, n := range b.SeqLens {
		tiles += (int64(n) + tile - 1) / tile
	}
	l.span = min(maxSpan, max(tiles*int64(s.KVHeads)/int64(blocksAWorker*workers), 1))
	l.blocks, l.first, l.spans = l.blocks[:0], append(l.first[:0], 0), append(l.spans[:0], 0)
	for i, n := range b.SeqLens {
		for h := range s.Heads {
			for t0 := 0; t0 < b.QueryLen(i); t0 += tokens {
				l.blocks = append(l.blocks, block{
					seq: int32(i), kvHead: int32(h / s.Group()), head: int32(h), heads: 1,
					t0: int32(t0), n: int32(min(tokens, b.QueryLen(i)-t0)),
				})
			}
			l.first = append(l.first, len(l.blocks))
		}
		l.spans = append(l.spans, l.spans[i]+(int64(n)+l.span*tile-1)/(l.span*tile))
	}
}

// items is the number of pairs of a span and a KV head.
func (l *headBlocks) items(s *kernel.Spec) int64 {
	return l.spans[len(l.spans)-1] * int64(s.KVHeads)
}

// keySpan is tiles of keys from j0 of a sequence of n keys, for one KV head.
type keySpan struct {
	seq, kvHead int
	j0, n       int64
	tiles       int
}

// keyTile is n keys from j0 of a sequence, for one KV head.
type keyTile struct {
	seq, kvHead int
	j0          int64
	n           int
}

// keySpan is what item = span·KVHeads + head stands for.
func (a *attention) keySpan(item int64) keySpan {
	l := &a.heads
	x, at := keySpan{kvHead: int(item % int64(a.spec.KVHeads))}, item/int64(a.spec.KVHeads)
	for l.spans[x.seq+1] <= at {
		x.seq++
	}
	x.j0, x.n = (at-l.spans[x.seq])*l.span*tile, int64(a.batch.SeqLens[x.seq])
	x.tiles = int(min(l.span, (x.n-x.j0+tile-1)/tile))
	return x
}

// last reports whether no key of the sequence comes after.
func (x *keySpan) last() bool { return x.j0+int64(x.tiles)*tile >= x.n }

// tile is the i-th one.
func (x *keySpan) tile(i int) keyTile {
	j0 := x.j0 + int64(i)*tile
	return keyTile{x.seq, x.kvHead, j0, int(min(tile, x.n-j0))}
}

// of are the blocks of n query heads of a sequence, from head at =
// sequence·Heads + head, one head after the other.
func (l *headBlocks) of(at, n int) []block { return l.blocks[l.first[at]:l.first[at+n]] }
