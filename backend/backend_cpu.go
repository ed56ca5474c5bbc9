//go:build cpu

package backend

import (
	"errors"
	"fmt"

	"github.com/longctx/longctx/kernel"
)

func accelerator() (kernel.Backend, error) {
	return nil, fmt.Errorf("built with tag cpu, which never uses an accelerator: %w", errors.ErrUnsupported)
}
