//go:build !cpu

package backend

import (
	"github.com/longctx/longctx/cuda"
	"github.com/longctx/longctx/kernel"
)

func accelerator() (kernel.Backend, error) {
	b, err := cuda.Open(0)
	if err != nil {
		return nil, err // not b: a nil *cuda.Backend is no nil interface
	}
	return b, nil
}
