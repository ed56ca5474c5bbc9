//go:build !(amd64 || arm64) || purego

package vec

import "unsafe"

// Prefetch hints that n rows of size bytes, stride bytes apart, will be read
// soon. It does nothing here.
func Prefetch(p unsafe.Pointer, stride, n, size int) {}
