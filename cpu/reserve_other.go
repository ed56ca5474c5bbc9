//go:build !unix || aix || solaris || illumos

package cpu

import "errors"

func reserve(int) ([]byte, error) { return nil, errors.ErrUnsupported }

func commit([]byte) error { return errors.ErrUnsupported }

func release([]byte) error { return nil }
