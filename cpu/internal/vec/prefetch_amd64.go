//go:build amd64 && !purego

package vec

import "unsafe"

// Prefetch hints that n rows of size bytes, stride bytes apart, will be read
// soon: they are brought to the second-level cache.
//
//go:noescape
func Prefetch(p unsafe.Pointer, stride, n, size int)
