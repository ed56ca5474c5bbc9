//go:build cuda && cgo

package cuda

import "github.com/longctx/longctx/kernel"

// ScoreLoss has no kernel here.
func (b *Backend) ScoreLoss(a *kernel.ScoreLossArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	return &kernel.UnsupportedError{Backend: "cuda", Reasons: []string{"ScoreLoss (have it on cpu)"}}
}
