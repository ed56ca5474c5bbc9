//go:build !race

package kvcache_test

const pooled = true
