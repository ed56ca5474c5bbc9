package kernel

import "sync/atomic"

// Batch is what is fixed for one step of a model and shared by its layers. It
// is plain host data; a backend copies what it needs in Plan.
//
// Sequence s owns the query tokens QueryStart[s] <= t < QueryStart[s+1] of
// Args.Query and SeqLens[s] keys. The query index of token t is
//
//	i = SeqLens[s] − (QueryStart[s+1] − t)
//
// (the last query is the last key: "bottom-right"), negative if there are
// fewer keys than queries.
type Batch struct {
	QueryStart []int32    // [n+1]
	SeqLens    []int32    // [n]
	KeyStart   []int32    // [n] contiguous: row of Args.Key at which a sequence starts
	Pages      BlockTable // paged: the pages of each sequence, in order

	Terms      []Term
	Rotary     RotaryTable
	ScoreScale []float32  // [len(Terms)][tokens] log₂e·Scale·(Term.Scale)·(log-n of the query), rounded once
	Positions  *Positions // nil: the position of a token is its index

	PrefixLens []int32     // [n] with MaskPrefix
	Documents  []int32     // [Σ SeqLens] with MaskDocument: id of each token, not decreasing in a sequence
	Tree       TreeMask    // with MaskTree
	Blocks     BlockSparse // with MaskBlocks
}

// Term is one part of a position method: on Region, the query is rotated by
// the row RowQ of Batch.Rotary and the key by RowK. The Regions of a Batch are
// disjoint.
type Term struct {
	Region     Region
	RowQ, RowK RowMap
}

// RowMap takes an integer position x to a row of a RotaryTable:
//
//	row(x) = Base + clamp(⌊(x mod Mod)/Div⌋ − First, 0, Count−1)
//
// Mod 0 takes no remainder. The table holds what the rows stand for, so slope,
// offset and limits of a PosMap cost the kernel nothing.
type RowMap struct {
	Mod, Div    int32
	First       int32
	Base, Count int32
}

// Row returns row(x).
func (m *RowMap) Row(x int64) int64 {
	if m.Mod > 0 {
		x -= FloorDiv(x, int64(m.Mod)) * int64(m.Mod)
	}
	if m.Div > 1 {
		x = FloorDiv(x, int64(m.Div))
	}
	return int64(m.Base) + min(max(x-int64(m.First), 0), int64(m.Count)-1)
}

// RotaryTable holds rows of Spec.RotaryDim/2 cosines and sines, row-major.
// A feature pair (x, y) is rotated to
//
//	x' = fma(x, cos, −(y·sin))
//	y' = fma(y, cos,   x·sin)
type RotaryTable struct {
	Cos, Sin []float32

	// Version lets a backend keep rows from one Plan to the next: in tables of the
	// same Version, other than 0, the rows that Terms name are the same. It comes
	// from NewVersion.
	Version uint64
}

var versions atomic.Uint64

// NewVersion returns a Version that no other table has.
func NewVersion() uint64 { return versions.Add(1) }

// Positions gives tokens positions other than their index.
type Positions struct {
	Query []int32 // [tokens]
	Key   []int32 // [Σ SeqLens]
}

// BlockTable names the pages of sequence s: Indices[Indptr[s]:Indptr[s+1]].
// Key j of the sequence lies in slot page·PageSize + j mod PageSize of its
// page ⌊j/PageSize⌋. Where Coded[i] is set, Indices[i] names a page of
// Args.CodedKey and Args.CodedValue, elsewhere one of Key and Value. Any page
// of a sequence may be either, its last one too. An empty Coded: all are plain.
type BlockTable struct {
	Indptr, Indices []int32
	Coded           []bool // [len(Indices)], with Spec.Coding
}

// IsCoded reports whether Indices[i] names a coded page.
func (t *BlockTable) IsCoded(i int) bool { return len(t.Coded) > 0 && t.Coded[i] }

// TreeMask restricts the last keys of a sequence, those of its own query
// tokens, as speculative decoding of a token tree needs: query r of the
// sequence sees the key of query c if bit c of its row is set. A row has
// ⌈queries/64⌉ words; the rows of sequence s start at Bits[Start[s]].
type TreeMask struct {
	Start []int32 // [n]
	Bits  []uint64
}

// BlockSparse lists, for each block of QueryBlock query indices, the blocks of
// KeyBlock key indices it may see, ascending: row r has
// Indices[Indptr[r]:Indptr[r+1]]. Query index i of sequence s and KV head g has
//
//	r = RowStart[s] + (⌊i/QueryBlock⌋ − ⌊i₀/QueryBlock⌋)              all heads alike
//	r = RowStart[s] + g·B + (⌊i/QueryBlock⌋ − ⌊i₀/QueryBlock⌋)        PerHead
//
// with i₀ the first query index of the sequence in this Batch and B its number
// of query blocks.
type BlockSparse struct {
	QueryBlock, KeyBlock int32
	PerHead              bool
	RowStart             []int32 // [n]
	Indptr, Indices      []int32
}

// Tokens is the number of query tokens.
func (b *Batch) Tokens() int {
	if len(b.QueryStart) == 0 {
		return 0
	}
	return int(b.QueryStart[len(b.QueryStart)-1])
}

// QueryLen is the number of query tokens of sequence s.
func (b *Batch) QueryLen(s int) int { return int(b.QueryStart[s+1] - b.QueryStart[s]) }

// QueryIndex is the index of the first query token of sequence s.
func (b *Batch) QueryIndex(s int) int64 { return int64(b.SeqLens[s]) - int64(b.QueryLen(s)) }

// QueryBlocks is the number B of query blocks of sequence s.
func (m *BlockSparse) QueryBlocks(b *Batch, s int) int64 {
	n, i0, q := int64(b.QueryLen(s)), b.QueryIndex(s), int64(m.QueryBlock)
	if n == 0 {
		return 0
	}
	return FloorDiv(i0+n-1, q) - FloorDiv(i0, q) + 1
}
