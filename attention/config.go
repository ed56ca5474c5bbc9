package attention

import (
	"github.com/longctx/longctx/kernel"
	"github.com/longctx/longctx/tensor"
)

// Config describes the attention of one layer type of a model. It is copied by
// New and not changed after.
type Config struct {
	Heads    int // query heads
	KVHeads  int // key and value heads; divides Heads
	HeadDim  int // features of a query and a key, 1 to 576
	ValueDim int // features of a value; 0: HeadDim

	DType    tensor.DType // of Query and Out; 0: F32
	KVDType  tensor.DType // of Key and Value, F8E4M3 and F8E5M2 too; 0: DType
	PageSize int          // tokens a page; 0: Key and Value are contiguous

	Coding kernel.Coding // of coded pages, with PageSize; zero: none

	Mask     Mask     // required: Causal(), Window(4096), …
	Position Position // how positions reach the rotation; nil: Absolute{}
	Rotary   Rotary   // frequencies, a method of package rope; nil: no rotation
	Score    Score    // what is done to scores beyond scaling

	KeyStorage  kernel.KeyStorage // PreRoPE (default) or PostRoPE keys
	Scale       float64           // 0: 1/√HeadDim
	Policy      kernel.Policy     // Exact (default) or Fast
	Backward    bool              // Backward will be called too
	ColumnStats bool              // ColumnStats will be called too
}

// Rotary is a rotation method. The methods of package rope satisfy it.
type Rotary interface {
	// Rotation returns frequencies and factors for a step whose longest
	// sequence has length tokens.
	Rotation(length int) (kernel.Rotation, error)
}

// KVSource is a paged store of keys and values. The views of package kvcache
// satisfy it.
type KVSource interface {
	KeyStorage() kernel.KeyStorage
	PageSize() int
	// LowerKV sets dst.SeqLens and dst.Pages; of Pages.Coded, which it finds
	// empty, only where pages are coded.
	LowerKV(dst *kernel.Batch) error
	// KeyPositions appends the position of every key, sequence after sequence,
	// or returns nil if each key's position is its index.
	KeyPositions(dst []int32) []int32
}

// Step describes one step of a model: which tokens attend to which keys. It
// serves all layers of one Config.
type Step struct {
	QueryLens []int // query tokens of each sequence

	// Contiguous keys: sequence s has KeyLens[s] keys from row KeyStarts[s] of
	// Key and Value. Nil KeyLens: as many as queries. Nil KeyStarts: one
	// sequence after another.
	KeyLens   []int
	KeyStarts []int

	// Paged keys.
	KV KVSource

	// Positions other than the index: of each query token, and of each key,
	// sequence after sequence. Nil KeyPos with a KV source takes the source's.
	// Nil QueryPos takes those of the queries' own keys, the last ones.
	QueryPos, KeyPos []int32

	// ByRank takes the index as position even if the KV source has kept others:
	// after eviction, the rank in the cache, as StreamingLLM does.
	ByRank bool

	PrefixLens []int              // of each sequence, with PrefixLM
	Documents  []int32            // of each key, with Documents: ids that do not decrease in a sequence
	Tree       kernel.TreeMask    // with Tree
	Blocks     kernel.BlockSparse // with Blocks

	// Length is the length given to the rotary method; 0: the longest
	// sequence. Fix it per request where frequencies depend on length and keys
	// are stored rotated.
	Length int
}
