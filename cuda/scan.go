//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"fmt"
	"unsafe"

	"github.com/longctx/longctx/kernel"
)

// Scan runs tokens of sequences through their states. The Fast policy computes as
// Exact does.
func (b *Backend) Scan(a *kernel.ScanArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	if err := b.onDevice(&a.Query, &a.Key, &a.Value, &a.Gate, &a.Beta, &a.Bonus, &a.State, &a.Out); err != nil {
		return err
	}
	heads, keyDim, valueDim := a.Value.Shape[1], a.Query.Shape[2], a.Value.Shape[2]
	slices := (valueDim + 63) / 64
	items := int64(a.Sequences()) * heads * slices
	if items == 0 {
		return nil
	}
	space := int64(0)
	for s := range a.Sequences() {
		if a.QueryStart[s+1]-a.QueryStart[s] > kernel.TileSize && (a.To == nil || a.To[s] < 0) {
			space = 4 * items * keyDim * 64
		}
	}
	return b.withTables(func(at []uint64) error {
		if err := b.space.grow(space); err != nil {
			return err
		}
		var p C.lc_scan_params
		setTensor(&p.query, &a.Query)
		setTensor(&p.key, &a.Key)
		setTensor(&p.value, &a.Value)
		setTensor(&p.out, &a.Out)
		if !a.State.IsZero() {
			setTensor(&p.state, &a.State)
		}
		name, channels := "scan_64", C.int32_t(0)
		switch {
		case a.ChannelGates():
			setTensor(&p.gate, &a.Gate)
			name, channels = "scan_channels_64", 1
		case !a.Gate.IsZero():
			setScalars(&p.gates, &a.Gate)
		}
		setScalars(&p.beta, &a.Beta)
		setScalars(&p.bonus, &a.Bonus)
		p.query_start = C.uint64_t(at[0])
		if a.From != nil {
			p.from = C.uint64_t(at[1])
		}
		if a.To != nil {
			p.to = C.uint64_t(at[2])
		}
		p.space, p.items = C.uint64_t(b.space.addr), C.int64_t(items)
		p.heads, p.group = C.int32_t(heads), C.int32_t(heads/a.Query.Shape[1])
		p.key_dim, p.value_dim, p.slices, p.scale = C.int32_t(keyDim), C.int32_t(valueDim), C.int32_t(slices), C.float(a.Scale)
		if err := b.dev.launch(name, blocksFor(items, 1), blockThreads, int(C.lc_scan_shared(channels)), unsafe.Pointer(&p)); err != nil {
			return fmt.Errorf("cuda: %s of %d heads and slices: %w", name, items, err)
		}
		return nil
	}, bytesOf(a.QueryStart), bytesOf(a.From), bytesOf(a.To))
}

// ScanBackward has no kernel here.
func (b *Backend) ScanBackward(a *kernel.ScanBackwardArgs) error {
	if err := a.Validate(); err != nil {
		return err
	}
	return &kernel.UnsupportedError{Backend: "cuda", Reasons: []string{"ScanBackward (have it on cpu)"}}
}
