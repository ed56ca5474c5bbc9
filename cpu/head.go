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

// headBlocks are the blocks, and the tiles of keys that they are met with.
type headBlocks struct {
	blocks []block // of a sequence and head together, tokens ascending
	first  []int   // [sequences·Heads+1] into blocks
	tiles  []int64 // [sequences+1] key tiles of the sequences before each
}

func (l *headBlocks) list(s *kernel.Spec, b *kernel.Batch) {
	tokens := headRows(s)
	l.blocks, l.first, l.tiles = l.blocks[:0], append(l.first[:0], 0), append(l.tiles[:0], 0)
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
		l.tiles = append(l.tiles, l.tiles[i]+(int64(n)+tile-1)/tile)
	}
}

// items is the number of pairs of a tile of keys and a KV head.
func (l *headBlocks) items(s *kernel.Spec) int64 {
	return l.tiles[len(l.tiles)-1] * int64(s.KVHeads)
}

// keyTile is n keys from j0 of a sequence, for one KV head.
type keyTile struct {
	seq, kvHead int
	j0          int64
	n           int
}

// keyTile is what item = tile·KVHeads + head stands for.
func (a *attention) keyTile(item int64) keyTile {
	t, at := keyTile{kvHead: int(item % int64(a.spec.KVHeads))}, item/int64(a.spec.KVHeads)
	for a.heads.tiles[t.seq+1] <= at {
		t.seq++
	}
	t.j0 = (at - a.heads.tiles[t.seq]) * tile
	t.n = int(min(tile, int64(a.batch.SeqLens[t.seq])-t.j0))
	return t
}

// of are the blocks of n query heads of a sequence, from head at =
// sequence·Heads + head, one head after the other.
func (l *headBlocks) of(at, n int) []block { return l.blocks[l.first[at]:l.first[at+n]] }
