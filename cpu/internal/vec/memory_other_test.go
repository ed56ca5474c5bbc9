//go:build !linux

package vec

import "testing"

// guarded has no guard pages on this system.
func guarded(_ testing.TB, n int) ([]byte, error) { return make([]byte, n), nil }
