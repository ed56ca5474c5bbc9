package kernel

import "github.com/longctx/longctx/tensor"

// Policy says which results count as right.
type Policy uint8

const (
	// Exact: every bit is fixed by the rules of the package comment, on every
	// backend, for any batch, page size, split and number of threads.
	Exact Policy = iota
	// Fast: the error is at most twice that of a naive computation in the same
	// element types; the same bits from run to run on one backend.
	Fast
)

func (p Policy) String() string { return name(p, "exact", "fast") }

// KeyStorage says what the Key rows that attention reads hold.
type KeyStorage uint8

const (
	// PreRoPE: keys are not rotated; the kernel rotates them as it loads them.
	PreRoPE KeyStorage = iota
	// PostRoPE: keys were rotated when they were stored. It asks that all
	// Terms rotate keys alike.
	PostRoPE
)

func (k KeyStorage) String() string { return name(k, "pre-RoPE", "post-RoPE") }

// RotaryLayout says which two features make a pair.
type RotaryLayout uint8

const (
	HalfSplit   RotaryLayout = iota // (i, i+Dim/2): GPT-NeoX, Hugging Face Llama
	Interleaved                     // (2i, 2i+1): GPT-J, Meta Llama, GGUF "norm"
)

func (l RotaryLayout) String() string { return name(l, "half-split", "interleaved") }

// Masks is the set of masks whose data comes with each Batch. They restrict
// every Term; intervals are not among them, they belong to the Term.
type Masks uint8

const (
	MaskPrefix   Masks = 1 << iota // Region.Prefix with Batch.PrefixLens
	MaskDocument                   // Batch.Documents
	MaskTree                       // Batch.Tree
	MaskBlocks                     // Batch.Blocks
)

// Scores is the set of score modifications beyond Scale.
type Scores uint8

const (
	ScoreSoftCap    Scores = 1 << iota // Spec.SoftCap
	ScoreSlopes                        // Args.Slopes: ALiBi
	ScoreRelBias                       // Args.RelBias: a table over i−j
	ScorePrefixBias                    // Args.PrefixBias: C[i] − C[j]
	ScoreSinkLogit                     // Args.SinkLogit
)

// MaxTerms is the largest number of Terms of a Spec.
const MaxTerms = 8

// MaxHeads is the largest number of query heads.
const MaxHeads = 1 << 12

// MaxHeadDim is the largest HeadDim and ValueDim: the rows of 512 + 64 features
// that MLA caches.
const MaxHeadDim = 576

// Spec is what is fixed for one layer type of a model. A backend chooses a
// kernel for it, or refuses it with an UnsupportedError.
type Spec struct {
	Heads    int // query heads
	KVHeads  int // divides Heads; query head h reads KV head h/(Heads/KVHeads)
	HeadDim  int // features of Query and Key, 1 to MaxHeadDim
	ValueDim int // features of Value and Out, 1 to MaxHeadDim

	DType    tensor.DType // of Query and Out
	KVDType  tensor.DType // of Key and Value, FP8 included
	PageSize int          // tokens a page; 0: Key and Value are contiguous

	Coding Coding // of coded pages, which may stand beside plain ones; paged only

	Terms        int          // 1 to MaxTerms
	RotaryDim    int          // features rotated, even; 0: none
	RotaryLayout RotaryLayout //
	KeyStorage   KeyStorage   //
	Masks        Masks
	Scores       Scores

	Scale        float64 // of the dot product, usually 1/√HeadDim
	SoftCap      float64 // with ScoreSoftCap: s ← SoftCap·tanh(s/SoftCap)
	RelBiasStart int32   // with ScoreRelBias: i−j of the table's first entry

	Policy      Policy
	Backward    bool // Backward will be called too
	ColumnStats bool // ColumnStats will be called too
}

// Group is the number of query heads that share a KV head.
func (s *Spec) Group() int { return s.Heads / s.KVHeads }
