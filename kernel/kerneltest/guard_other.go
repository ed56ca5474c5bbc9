//go:build !linux

package kerneltest

import "github.com/longctx/longctx/tensor"

// guards tells whether guarded has guard pages.
const guards = false

// guarded has no guard pages on this system: a stray read is found only if it
// meets the NaNs around a tensor.
func guarded(n int) (b []byte, free func(), err error) {
	return tensor.NewHost(int64(n)).Bytes(), func() {}, nil
}
