// Package vec has the leaf loops of the CPU backend: everything that touches a
// float in an inner loop, and nothing else. Each takes a whole tile, so that a
// call is paid once a tile. The generic Go versions here are the specification;
// assembly for an architecture goes in files beside them.
//
// A tile is row-major float32. Rows r, keys j and features d are stored at
//
//	q[r·dim+d]  k[j·dim+d]  v[j·dim+d]  o[r·dim+d]  s[r·Stride+j]
//
// The functions named Exact round as package kernel states, with the fused
// multiply-add emulated; those named Fast multiply and add with two roundings,
// in the same order. Neither lets the compiler fuse: a product that feeds a sum
// is converted to float32 first.
//
// Versions, in GFLOP/s of one core at dim 128 (bench/results/2026-11-23-cpu-go.txt,
// which has the command):
//
//	DotFast   1  two rows × four keys in registers           7.8
//	DotExact  1  one row × four keys, flag instead of call   1.85
package vec

import "github.com/longctx/longctx/kernel"

// Stride is the distance between rows of a score tile: its largest number of keys.
const Stride = kernel.TileSize
