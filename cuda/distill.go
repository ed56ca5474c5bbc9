//go:build cuda && cgo

package cuda

import "github.com/longctx/longctx/kernel"

// Scores has no kernel here.
func (b *Backend) Scores(a *kernel.ScoresArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	return &kernel.UnsupportedError{Backend: "cuda", Reasons: []string{"Scores (have it on cpu)"}}
}

// ScoreLoss has no kernel here.
func (b *Backend) ScoreLoss(a *kernel.ScoreLossArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	return &kernel.UnsupportedError{Backend: "cuda", Reasons: []string{"ScoreLoss (have it on cpu)"}}
}
