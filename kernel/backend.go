package kernel

import "github.com/longctx/longctx/tensor"

// Backend computes. Its methods are safe for concurrent use.
type Backend interface {
	Name() string
	// Alloc returns zeroed memory, or an *OutOfMemoryError.
	Alloc(bytes int64) (tensor.Buffer, error)
	// Attention returns the kernel for a Spec, or an *UnsupportedError that
	// names every reason.
	Attention(Spec) (Attention, error)
	Ops
}

// Ops are the operations that need no plan.
type Ops interface {
	AppendKV(*AppendArgs) error
	CopyPages(*CopyArgs) error
	GatherRows(*GatherArgs) error
	EncodePages(*EncodeArgs) error
	Rotate(*RotateArgs) error
	Merge(*MergeArgs) error
	PageBounds(*PageBoundsArgs) error
	PageScores(*PageScoresArgs) error
	RowScores(*RowScoresArgs) error
	CodeScores(*CodeScoresArgs) error
	TopK(*TopKArgs) error
	Scores(*ScoresArgs) error
	ScoreLoss(*ScoreLossArgs) error
}

// Attention is a kernel chosen for a Spec. Run, Backward and ColumnStats use the
// Batch of the last Plan; one Attention serves one goroutine at a time.
type Attention interface {
	Name() string // which kernel: "cpu/generic/exact/f32/d128"
	Plan(*Batch) error
	Run(*Args) error
	Backward(*BackwardArgs) error
	ColumnStats(*ColumnStatsArgs) error
	Close() error
}
