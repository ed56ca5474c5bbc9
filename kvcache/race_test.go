//go:build race

package kvcache_test

// Under the race detector a sync.Pool forgets now and then.
const pooled = false
