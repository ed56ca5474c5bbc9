//go:build cuda && cgo

package cuda

// #include "kernels/params.h"
import "C"

import (
	"slices"

	"github.com/longctx/longctx/kernel"
)

// rotary is a kernel.RotaryTable on the device. Of a table that it knows by its
// Version it copies only the rows that are new.
type rotary struct {
	cos, sin buffer
	version  uint64
	have     []rows
}

// rows are rows first … end−1 of a table.
type rows struct{ first, end int64 }

// upload copies the rows that the Terms of a Batch name.
func (r *rotary) upload(dim int, b *kernel.Batch) error {
	half, size := int64(dim/2), int64(len(b.Rotary.Cos))*4
	if v := b.Rotary.Version; v == 0 || v != r.version || size > r.cos.Size() {
		r.version, r.have = v, r.have[:0]
	}
	for _, m := range [...]*buffer{&r.cos, &r.sin} {
		if err := m.grow(size); err != nil {
			return err
		}
	}
	for i := range b.Terms {
		for _, m := range [...]*kernel.RowMap{&b.Terms[i].RowQ, &b.Terms[i].RowK} {
			want := rows{int64(m.Base), int64(m.Base) + int64(m.Count)}
			at := slices.IndexFunc(r.have, func(x rows) bool { return x.first <= want.first && want.first <= x.end })
			if at < 0 {
				at = len(r.have)
				r.have = append(r.have, rows{want.first, want.first})
			}
			have := &r.have[at]
			if want.end <= have.end {
				continue
			}
			lo, hi := have.end*half, want.end*half
			if err := r.cos.copyRow(lo, b.Rotary.Cos[lo:hi]); err != nil {
				return err
			}
			if err := r.sin.copyRow(lo, b.Rotary.Sin[lo:hi]); err != nil {
				return err
			}
			have.end = want.end
		}
	}
	return nil
}

// copyRow copies floats to the buffer from element at on.
func (m *buffer) copyRow(at int64, x []float32) error {
	return m.dev.copyIn(m.addr+uint64(4*at), bytesOf(x))
}
