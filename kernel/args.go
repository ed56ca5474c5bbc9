package kernel

import "github.com/longctx/longctx/tensor"

// Args is what changes with each layer of a step. Zero Views mean absent.
type Args struct {
	Query tensor.View // [tokens, Heads, HeadDim] Spec.DType
	Key   tensor.View // [rows, KVHeads, HeadDim], or paged [pages, PageSize, KVHeads, HeadDim]
	Value tensor.View // as Key, with ValueDim
	Out   tensor.View // [tokens, Heads, ValueDim] Spec.DType
	LSE   tensor.View // [tokens, Heads] F32, optional: natural log of the sum of exponentials

	// Scales of FP8 keys and values, optional: a value is f32(q)·scale of its head.
	KeyScale, ValueScale tensor.View // [KVHeads] F32

	CodedKey, CodedValue CodedPages // with Spec.Coding

	ScoreArgs
}

// ScoreArgs are the tables of the score modifications of Spec.Scores, all F32
// and natural (not in units of log 2).
type ScoreArgs struct {
	Slopes     tensor.View // [Heads]: s −= Slopes[h]·|i−j|
	RelBias    tensor.View // [Heads, n]: s += RelBias[h, clamp(i−j−RelBiasStart, 0, n−1)]
	PrefixBias tensor.View // [Σ SeqLens, Heads]: s += C[i] − C[j]; row of a token: keys before its sequence + index
	SinkLogit  tensor.View // [Heads]: one more term exp(SinkLogit[h]) in the denominator
}

// BackwardArgs asks for the gradients of a contiguous Run with the same Batch.
// The gradients are written, not added to.
type BackwardArgs struct {
	Query, Key, Value tensor.View // as in Args
	Out, LSE          tensor.View // as Run left them
	ScoreArgs

	DOut tensor.View // [tokens, Heads, ValueDim] Spec.DType or F32
	DLSE tensor.View // [tokens, Heads] F32, optional

	DQuery tensor.View // [tokens, Heads, HeadDim] F32
	DKey   tensor.View // [rows, KVHeads, HeadDim] F32
	DValue tensor.View // [rows, KVHeads, ValueDim] F32
}

// AppendArgs stores rows of Key and Value in the slots of a paged cache,
// rounding to its element type. A slot of −1 drops the row. Rows of the cache's
// own type are stored bit for bit, and then have no scale.
type AppendArgs struct {
	Key, Value           tensor.View // [tokens, KVHeads, dim]
	KeyCache, ValueCache tensor.View // [pages, PageSize, KVHeads, dim]
	KeyScale, ValueScale tensor.View // [KVHeads] F32, optional, of FP8 caches: rule 12
	Slots                []int32     // [tokens] page·PageSize + offset, each at most once
}

// EncodeArgs codes plain pages of a layer: page Src[i] of Key and Value becomes
// page Dst[i] of CodedKey and CodedValue, by rules 13 and 14. A page is read
// whole, the Levels of CodedKey and CodedValue too. A page whose values its
// Coding cannot hold (a NaN or an infinity that is no outlier, a zero, a scale
// or a part of a low rank that is no finite F16, a finite outlier that is an
// infinite one) is not coded: Encoded[i] becomes false, and page Dst[i] holds
// anything. On an error nothing is written.
type EncodeArgs struct {
	Coding               Coding
	Key, Value           tensor.View // [pages, PageSize, KVHeads, dim]
	KeyScale, ValueScale tensor.View // [KVHeads] F32, optional, of FP8 pages
	CodedKey, CodedValue CodedPages
	Src, Dst             []int32 // a target comes once
	Encoded              []bool  // [len(Src)], output
}

// CopyArgs copies whole pages within a cache tensor.
type CopyArgs struct {
	Cache    tensor.View // [pages, PageSize, KVHeads, dim]
	Src, Dst []int32     // page Src[i] is copied to page Dst[i]; no page is both
}

// RotateArgs rotates rows of X in place by rows of a table, in float32, and
// rounds to the type of X.
type RotateArgs struct {
	X       tensor.View // [tokens, heads, dim], dim >= RotaryDim; the tail is left alone
	Rows    []int32     // [tokens] rows of Table; −1 leaves the token alone
	Table   RotaryTable
	Dim     int // RotaryDim
	Layout  RotaryLayout
	Inverse bool // rotate back: by the negative sine
	Policy  Policy
}

// MergeArgs joins attention over two disjoint sets of keys. Out and LSE may be
// A's or B's own.
type MergeArgs struct {
	OutA, LSEA, OutB, LSEB tensor.View // [tokens, Heads, ValueDim], [tokens, Heads] F32
	Out, LSE               tensor.View
	Policy                 Policy
}
